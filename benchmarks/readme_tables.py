"""Write the tables of README and docs from the result files: what stands between two markers is made here.

    python benchmarks/readme_tables.py           # after new results were committed
    python benchmarks/readme_tables.py --check   # ends with 1 where pages and result files differ

A marker is `<!-- table NAME, made by benchmarks/readme_tables.py -->`, the table ends at `<!-- end -->`. Every cell of
these tables must have been run, or is empty.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pumer.utils.files import read_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("results", "gpu", "export", "tune", "generative")),
)
MARKED = re.compile(r"(<!-- table ([\w-]+), made by [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {
    "vilt": "ViLT",
    "meter": "METER",
    "vqav2": "VQAv2",
    "nlvr2": "NLVR2",
    "snli_ve": "SNLI-VE",
    "flickr30k": "Flickr30k",
    "coco": "COCO",
    "TR": "text recall@1",
    "IR": "image recall@1",
}
FULL_SIZE = {"vilt": "vilt-b32-cpu.json", "meter": "meter-b16-cpu.json"}
METER = "0,2,4,6; 0.2/0.2/0.2"
GPU_ROWS = {"vilt": ("2,5,8", "2,4,6,8", "ToMe 13"), "meter": (METER, f"{METER} + vision")}
"""Schedules of the table of a GPU."""
METHODS = ("text", "[CLS]", "chance")
"""Of the table of kept objects, in its order of columns."""


def main() -> None:
    """Rewrite, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where they differ")
    parser.add_argument("--readme", type=Path, nargs="+", default=list(PAGES), help="pages with tables")
    arguments = parser.parse_args()
    before = {page: page.read_text(encoding="utf-8") for page in arguments.readme}
    after = {page: rewritten(text) for page, text in before.items()}
    if arguments.check:
        sys.exit(int(before != after))
    for page, text in after.items():
        write_text(page, text)


def rewritten(text: str) -> str:
    """A text with all marked tables as the result files have them."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def first() -> str:
    """What reduction costs and buys: the small ViLT on VQAv2 alone."""
    original, reduced = (row for row in _reproduced("table1") if row["where"] == "vilt/vqav2")
    cost = reduced["cost"]
    gain = [
        f"{cost['macs_fewer']:.2f}x fewer",
        f"{cost['throughput']['median']:.2f}x",
        f"{100 * (cost['memory'] - 1):+.0f}%",
    ]
    lines = [["original", points(original["tuned"]["accuracy"]), "1", "1", ""]]
    for name, which in (("reduced, not fine-tuned", "untuned"), ("reduced, distilled", "tuned")):
        lines.append([name, points(reduced[which]["accuracy"]), *gain])
    columns = ("small ViLT, VQA in the built-in world", "accuracy", "MACs", "throughput", "memory in training")
    return table(columns, lines)


def vilt_full_size() -> str:
    """ViLT-B/32 with random weights."""
    measured = read_json(RESULTS / FULL_SIZE["vilt"])["float32"]
    labels = {
        "unreduced": "`NoReduction` (our fast path)",
        "2,5,8": "`PuMerConfig`, layers 2, 5, 8",
        "2,4,6,8": "`PuMerConfig`, layers 2, 4, 6, 8",
        "transformers": "transformers' own forward",
    }
    lines = []
    for name, label in labels.items():
        plan = measured["plan"][name]
        speed = [_spread(up) for up in _speed_ups(measured, name)[::-1]]
        ideal = "1" if plan["ideal_speedup"] == 1 else f"{plan['ideal_speedup']:.2f}x"
        speed = ["1", "1"] if name == "unreduced" else speed
        memory = [_mebibytes(measured, name, mode) for mode in ("autograd", "inference")]
        lines.append([label, f"{plan['macs'] / 1e9:.2f} G", ideal, *speed, *memory])
    columns = ("ViLT-B/32, 384 px, 32 words", "MACs", "ideal", "measured, batch 8", "measured, batch 1")
    return table([*columns, "activations, training", "activations, inference"], lines)


def gpu(dtype: str) -> str:
    """ViLT and METER on a GPU in one number format: eager and as CUDA graphs."""
    lines = []
    for name, schedules in GPU_ROWS.items():
        found = read_json(RESULTS / "gpu" / f"{name}.json")["points"]
        points = {(p["mode"], p["batch"]): p for p in found if p["dtype"] == dtype}
        for batch in sorted({batch for _, batch in points}):
            for schedule in schedules:
                eager, graphs = (points[mode, batch]["models"] for mode in ("eager", "cudagraph"))
                label = f"{NAMES[name]}, {batch}, {schedule}"
                cells = [f"{graphs['unreduced']['images_per_second']:,.0f}/s"]
                cells += [_spread(models[schedule]["speedup"]) for models in (eager, graphs)]
                limit = graphs.get(f"limit of {schedule}")
                cells += ["" if limit is None else f"{limit['speedup']['median']:.2f}x"]
                lines.append([label, *cells, f"{points['eager', batch]['ideal'][schedule]:.2f}x"])
    columns = ("model, batch, schedule", "unreduced, CUDA graphs", "reduced, eager", "reduced, CUDA graphs")
    return table([*columns, "limit, CUDA graphs", "MACs"], lines)


def gpu_reduction() -> str:
    """What one reduction costs on a GPU."""
    lines = []
    for point in read_json(RESULTS / "gpu" / "reduction.json")["points"]:
        rows = point["rows"]
        cells = [str(round(rows[name]["launches"])) for name in ("unreduced", "fused")]
        for name in ("fused", "plain"):
            cells.append(_per_reduction(rows.get(name)))
        lines.append([f"{NAMES[point['model']]}, {point['batch']}", *cells, str(round(rows["fused"]["syncs"]))])
    columns = (
        "model, batch",
        "launches of a forward, unreduced",
        "reduced",
        "one reduction, fused",
        "without the kernels",
    )
    return table([*columns, "host syncs"], lines)


def gpu_memory() -> str:
    """Peak memory of inference on a GPU, whole and in slices."""
    lines = []
    for point in read_json(RESULTS / "gpu" / "memory.json")["points"]:
        rows = (point["rows"][name] for name in point["names"])
        cells = [f"{row['activations'] / 2**20:.0f} MiB, {1e3 * row['seconds']:.0f} ms" for row in rows]
        lines.append([f"{NAMES[point['model']]}, {point['dtype']}, batch {point['batch']}", *cells])
    return table(("model", "unreduced", "in slices of 8", "reduced", "in slices of 8"), lines)


def five_tasks() -> str:
    """Table 1."""
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for row in _reproduced("table1"):
        pairs.setdefault(row["where"], []).append(row)
    columns = (
        "small model, task (test examples)",
        "seeds",
        "original",
        "reduced, distilled",
        "difference",
        "agreement",
    )
    lines = []
    for where, (original, reduced) in pairs.items():
        whole, tuned = original["tuned"], reduced["tuned"]
        name = ", ".join(NAMES[part] for part in re.split("[/ ]", where))
        memory = f"{100 * (reduced['cost']['memory'] - 1):+.0f}%"
        line = [f"{name} ({whole['questions']:,})", str(tuned["seeds"]), points(whole["accuracy"])]
        line += [points(tuned["accuracy"]), points(tuned["difference"], "+"), f"{100 * tuned['agreement']:.1f}"]
        lines.append([*line, points(reduced["untuned"]["difference"], "+"), f"{_throughput(reduced)}, {memory}"])
    return table([*columns, "difference, not fine-tuned", "throughput, memory"], lines)


def methods() -> str:
    """Figure 5: of each method the setting with about half of the original's multiply-accumulates."""
    series: dict[str, list[Mapping[str, Any]]] = {}
    for row in _reproduced("figure5"):
        series.setdefault(row["series"], []).append(row)
    series.pop("")
    columns = ("method", "difference to the original", "not fine-tuned", "MACs, fewer", "throughput")
    lines = []
    for rows in series.values():
        row = min(rows, key=lambda row: abs(row["cost"]["macs_fewer"] - 2))
        beside = _beside(row.get("at_equal_throughput"))
        differences = [points(row[which]["difference"], "+") for which in ("tuned", "untuned")]
        lines.append([row["model"].replace(": ", ", ", 1), *differences, _macs(row), _throughput(row), beside])
    return table([*columns, "against PuMer at equal throughput"], lines)


def parts(name: str) -> str:
    """A table of the report whose rows are models."""
    columns = ("model", "accuracy", "difference", "difference, not fine-tuned", "MACs, fewer", "throughput")
    lines = []
    for row in _reproduced(name):
        cells = [""] * 4
        if row["changed"]:
            differences = [points(row[which]["difference"], "+") for which in ("tuned", "untuned")]
            cells = [*differences, _macs(row), _throughput(row)]
        lines.append([row["model"], points(row["tuned"]["accuracy"]), *cells])
    return table(columns, lines)


def objects() -> str:
    """What pruning 30% in each layer leaves of the objects that a question is about."""
    rows = [row for row in read_json(RESULTS / "text-matters.json")["rows"] if row["prune_ratio"] == 0.3]
    layers: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        layers.setdefault((row["backbone"], row["layer"]), {})[row["method"]] = row
    lines = []
    for (backbone, layer), found in layers.items():
        left = f"{NAMES[backbone]}, {layer} ({100 * found['text']['patches']['mean']:.1f})"
        alike = ", ".join(f"{100 * found[method]['likeness']['mean']:.0f}" for method in METHODS)
        lines.append([left, *(points(found[method]["named"]) for method in METHODS), alike])
    columns = ("model, layer (patches left)", "by text", "by [CLS]", "by chance", "alike: text, [CLS], chance")
    return table(columns, lines)


def exported() -> str:
    """Exported models beside PyTorch on a CPU, unreduced and reduced."""
    kinds = ("PyTorch f32", "PyTorch bf16", "OpenVINO f32", "OpenVINO bf16", "OpenVINO int8")
    lines = []
    for name, measured in read_json(RESULTS / "exported-cpu.json").items():
        for point in measured["speed"]["points"]:
            for reduction, fewer in measured["ideal"].items():
                speeds = [point["models"][f"{kind}, {reduction}"]["speedup"]["median"] for kind in kinds]
                label = f"{name}, {point['batch']}, {reduction}"
                lines.append([label, f"{fewer:.2f}x", *(f"{speed:.2f}x" for speed in speeds)])
    return table(("model, batch, reduction", "MACs, fewer", *kinds), lines)


def precisions() -> str:
    """What a precision costs: accuracy of the small ViLT on the five tasks."""
    kinds = ("OpenVINO f32", "ONNX Runtime f32", "OpenVINO bf16", "OpenVINO int8")
    lines = []
    for measured in read_json(RESULTS / "precisions-vilt-small-cpu.json").values():
        model = "original" if measured["reduction"] == "none" else "reduced"
        for metric, own in measured["rows"]["PyTorch f32"].items():
            found = [measured["rows"][kind][metric] for kind in kinds]
            cells = [f"{points(each['difference'], '+')}, {100 * each['agreement']:.1f}" for each in found]
            label = f"{_measure(measured['task'], metric)}, {model}"
            lines.append([label, f"{100 * own['mean']:.1f}", *cells])
    return table(("small ViLT", "PyTorch f32", *kinds), lines)


def precision_speed() -> str:
    """Examples per second of the same models, by precision."""
    kinds = ("PyTorch f32", "OpenVINO f32", "ONNX Runtime f32", "OpenVINO bf16", "OpenVINO int8")
    lines = []
    for measured in read_json(RESULTS / "precisions-vilt-small-cpu.json").values():
        model = "original" if measured["reduction"] == "none" else "reduced"
        for point in measured.get("speed", {"points": []})["points"]:
            speeds = [point["models"][kind]["images_per_second"] for kind in kinds]
            label = f"{NAMES[measured['task']]}, {model}, batch {point['batch']}"
            lines.append([label, *(f"{speed:,.0f}" for speed in speeds)])
    return table(("small ViLT, examples per second", *kinds), lines)


def styles() -> str:
    """The paper's schedules and the gradual ones, not fine-tuned."""
    lines = []
    for task, row in read_json(RESULTS / "styles-vilt-small.json")["rows"].items():
        for metric, found in row["metrics"].items():
            for name in ("paper", "gradual"):
                beside = points(found["gradual_to_paper"], "+") if name == "gradual" else ""
                cells = [f"{row[name]['fewer_macs']:.2f}x", points(found[name]["to_original"], "+"), beside]
                lines.append([f"{_measure(task, metric)}, {name}", *cells])
    return table(("small ViLT, schedule", "MACs, fewer", "difference to the original", "gradual to the paper's"), lines)


def tuned(name: str, model: str) -> str:
    """Figure 5 by one search for all methods: differences to the original at each number of times fewer MACs."""
    rows = read_json(RESULTS / f"tuned-{name}.json")["rows"]
    speeds = sorted({row["speed"] for row in rows} - {1.0})
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row["method"] != "original":
            name = {"paper": "pumer, the paper's layers", "pumer": "pumer, tuned"}.get(row["method"], row["method"])
            line = lines.setdefault(f"{name}{', fine-tuned' * row['trained']}", [""] * len(speeds))
            line[speeds.index(row["speed"])] = points(row["to_original"], "+")
    columns = (model, *(f"{speed:g}x" for speed in speeds))
    return table(columns, [[name, *cells] for name, cells in lines.items()])


def tuned_to_tome() -> str:
    """How much more accurate the tuned PuMer is than the tuned ToMe."""
    cells: dict[float, dict[str, str]] = {}
    columns = [f"{NAMES[task]}{kind}" for task in ("vqav2", "snli_ve") for kind in ("", ", fine-tuned")]
    for task in ("vqav2", "snli_ve"):
        for row in read_json(RESULTS / f"tuned-vilt-{task}.json")["rows"]:
            if row["method"] == "tome":
                name = f"{NAMES[task]}{', fine-tuned' * row['trained']}"
                cells.setdefault(row["speed"], {})[name] = points(_less(row["to_pumer"]), "+")
    lines = [[f"{speed:g}x", *(found.get(name, "") for name in columns)] for speed, found in sorted(cells.items())]
    return table(("small ViLT, MACs, fewer", *columns), lines)


def _less(found: Mapping[str, float]) -> dict[str, float]:
    """The negative of a difference."""
    return {"mean": -found["mean"], "low": -found["high"], "high": -found["low"]}


def gradual_parts() -> str:
    """Parts of a gradual schedule, each changed by itself."""
    lines: dict[str, list[str]] = {}
    rows = read_json(RESULTS / "parts.json")["rows"]
    columns = list(dict.fromkeys(f"{NAMES[row['task']]}, {row['speed']:g}x" for row in rows))
    for row in rows:
        line = lines.setdefault(row["variant"], [""] * len(columns))
        line[columns.index(f"{NAMES[row['task']]}, {row['speed']:g}x")] = points(row["to_original"], "+")
    return table(("small ViLT, not fine-tuned", *columns), [[name, *cells] for name, cells in lines.items()])


def wide() -> str:
    """The five tasks in the wide layout: originals, and the schedules of the paper and gradual ones."""
    lines = []
    rows = read_json(RESULTS / "styles-vilt-wide.json")["rows"]
    for task in ("vqav2", "nlvr2", "snli_ve", "flickr30k", "coco"):
        for metric, found in rows[task]["metrics"].items():
            cells = [f"{found['questions']:,}", points(found["original"]["accuracy"])]
            cells += [points(found[name]["to_original"], "+") for name in ("paper", "gradual")]
            lines.append([_measure(task, metric), *cells])
    columns = ("small ViLT, wide layout", "questions", "original", "paper's schedule", "gradual schedule")
    return table(columns, lines)


def conversations() -> str:
    """Methods on the small LLaVA: two questions about each image."""
    lines = []
    for row in read_json(RESULTS / "conversations-llava-small-cpu.json")["rows"]:
        macs = "" if row["fewer_macs"] is None else f"{row['fewer_macs']:.2f}x"
        cells = [f"{row['tokens']:.0f}", macs]
        for name in ("first", "second"):
            cells.append(points(row[name]) if row["kept"] == "1" else points(row[name]["difference"], "+"))
        cells += [f"{100 * row[name]['mean']:.0f}" if name in row else "" for name in ("asked", "other")]
        lines.append([row["method"], row["kept"], *cells])
    columns = (
        "method",
        "share of tokens asked for",
        "image tokens left",
        "MACs, fewer",
        "first question",
        "second question",
    )
    return table([*columns, "of the first's objects, left %", "of the second's"], lines)


def demo() -> str:
    """What `make demo` prints."""
    lines = []
    for row in read_json(RESULTS / "demo-world.json")["rows"]:
        unseen = row.get("splits", {}).get("unseen pairs")
        beside = [points(row["difference"], "+"), f"{100 * row['agreement']:.1f}"] if "difference" in row else ["", ""]
        lines.append([row["name"], points(row["accuracy"]), *beside, f"{100 * unseen['mean']:.1f}" if unseen else ""])
    return table(("small ViLT", "accuracy", "difference to the original", "agreement", "unseen combinations"), lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "first": first,
    "vilt-full-size": vilt_full_size,
    "five-tasks": five_tasks,
    "methods": methods,
    "parts": lambda: parts("table3"),
    "vision": lambda: parts("vision"),
    "tuned-vqav2": lambda: tuned("vilt-vqav2", "small ViLT, VQAv2"),
    "tuned-snli_ve": lambda: tuned("vilt-snli_ve", "small ViLT, SNLI-VE"),
    "tuned-tome": tuned_to_tome,
    "gradual-parts": gradual_parts,
    "wide": wide,
    "wide-vqav2": lambda: tuned("vilt-wide-vqav2", "small ViLT, VQAv2, wide"),
    "wide-snli_ve": lambda: tuned("vilt-wide-snli_ve", "small ViLT, SNLI-VE, wide"),
    "objects": objects,
    "exported": exported,
    "precisions": precisions,
    "precision-speed": precision_speed,
    "styles": styles,
    "conversations": conversations,
    "demo": demo,
    "gpu": lambda: gpu("bfloat16"),
    "gpu-float32": lambda: gpu("float32"),
    "gpu-memory": gpu_memory,
    "gpu-reduction": gpu_reduction,
}


def points(part: Mapping[str, float], sign: str = "") -> str:
    """A figure with its interval, in percent or percentage points."""
    mean, low, high = (f"{100 * part[name]:{sign}.1f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *lines))


def _measure(task: str, metric: str) -> str:
    """A task, and of retrieval which recall."""
    return NAMES[task] if metric == "accuracy" else f"{NAMES[task]}, {NAMES[metric]}"


def _reproduced(name: str) -> list[Mapping[str, Any]]:
    tables = read_json(RESULTS / "reproduce" / "results.json")["tables"]
    return next(list(found["rows"]) for found in tables if found["name"] == name)


def _speed_ups(measured: Mapping[str, Any], name: str) -> list[Mapping[str, float]]:
    """Against the unreduced model, by rising batch size."""
    points = sorted(measured["speed"]["points"], key=lambda point: point["batch"])
    return [point["models"][name]["speedup"] for point in points]


def _mebibytes(measured: Mapping[str, Any], name: str, mode: str) -> str:
    return f"{measured['memory'][name][mode] / 2**20:.0f} MiB"


def _spread(speed: Mapping[str, float]) -> str:
    """A speed-up with its quartiles."""
    return f"{speed['median']:.2f}x ({speed['low']:.2f}–{speed['high']:.2f})"


def _per_reduction(row: Mapping[str, Any] | None) -> str:
    """Launches and kernel time of one reduction; empty where it was not measured."""
    if row is None:
        return ""
    return f"{row['reduction_launches']:.0f} launches, {1e6 * row['reduction_seconds']:.0f} µs"


def _beside(part: Mapping[str, Any] | None) -> str:
    return "" if part is None else points(part, "+") + ", to its last" * part["beyond"]


def _throughput(row: Mapping[str, Any]) -> str:
    return _spread(row["cost"]["throughput"])


def _macs(row: Mapping[str, Any]) -> str:
    return f"{row['cost']['macs_fewer']:.2f}x"


if __name__ == "__main__":
    main()
