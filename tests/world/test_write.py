"""The whole world: every data set goes through its official reader; labels are balanced; files are deterministic."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pumer.settings.data import SIZES as SIZES_BY_DEFAULT
from pumer.settings.data import WORLD
from pumer.tasks import TASKS
from pumer.tasks.retrieval import read_images
from pumer.utils.errors import InputError
from pumer.world import WorldConfig, write_vqav2, write_world
from pumer.world.descriptions import CAPTIONS_PER_IMAGE
from pumer.world.scenes import NARROW, WIDE
from pumer.world.write import run

CONFIG = WorldConfig(seed=3, train=48, val=30, test=24, heldout=6)
SIZES = {"train": 48, "val": 30, "test": 24}


@pytest.fixture(scope="module", params=[False, True], ids=["narrow", "wide"])
def wide(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, wide: bool) -> Path:
    root = tmp_path_factory.mktemp("data") / "world"
    assert write_world(root, replace(CONFIG, wide=wide)) == [
        root / name for name in ("vqav2", "nlvr2", "snli_ve", "flickr30k", "coco")
    ]
    return root


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("task", ["vqav2", "nlvr2", "snli_ve"])
def test_the_official_reader_reads_it(world: Path, task: str, split: str) -> None:
    examples = TASKS[task].read(world / task, split)
    assert len(examples) == len({example.id for example in examples}) == SIZES[split]
    for example in examples:
        assert len(example.images) == (2 if task == "nlvr2" else 1)
        assert all(path.is_file() for path in example.images)
        assert bool(example.answers) == ((task, split) != ("vqav2", "test"))


def test_vqav2_is_what_its_own_writer_writes(world: Path, wide: bool, tmp_path: Path) -> None:
    alone = write_vqav2(tmp_path / "alone", seed=3, train=48, val=30, heldout=6, scenes=WIDE if wide else NARROW)
    names = [path.relative_to(alone) for path in alone.rglob("*") if path.is_file() and path.name != "scenes.json"]
    assert all((alone / name).read_bytes() == (world / "vqav2" / name).read_bytes() for name in names)


def test_nlvr2_has_the_official_fields_and_balanced_sentences(world: Path) -> None:
    for name, count in (("train", 48), ("dev", 30), ("test1", 24)):
        entries = lines(world / "nlvr2" / f"{name}.json")
        labels = defaultdict(list)
        for entry in entries:
            assert {"sentence", "label", "identifier", "left_url", "right_url", "synset", "query"} < set(entry)
            assert ("directory" in entry) == (name == "train")
            labels[entry["sentence"]].append(entry["label"])
        assert len(entries) == count
        whole = [Counter(given) for given in labels.values() if len(given) == 4]
        assert len(whole) >= count // 4 - 1
        assert all(counts == {"True": 2, "False": 2} for counts in whole)


def test_snli_ve_has_the_official_fields_and_sentences_of_every_label(world: Path) -> None:
    for name, count in (("train", 48), ("dev", 30), ("test", 24)):
        entries = lines(world / "snli_ve" / f"snli_ve_{name}.jsonl")
        labelled = [entry for entry in entries if entry["gold_label"] != "-"]
        assert len(labelled) == count
        labels = defaultdict(set)
        for entry in labelled:
            assert entry["captionID"].startswith(entry["Flickr30K_ID"])
            assert Counter(entry["annotator_labels"]).most_common(1)[0][0] == entry["gold_label"]
            assert len(entry["annotator_labels"]) == (1 if name == "train" else 5)
            labels[entry["sentence2"]].add(entry["gold_label"])
        assert all(len(given) == 3 for given in labels.values())


def test_flickr30k_has_five_captions_per_picture(world: Path) -> None:
    images = json.loads((world / "flickr30k" / "dataset_flickr30k.json").read_text())["images"]
    assert Counter(image["split"] for image in images) == {"train": 10, "val": 6, "test": 5}
    assert [number for image in images for number in image["sentids"]] == list(range(5 * len(images)))
    for split in SIZES:
        pictures = read_images(world / "flickr30k" / "dataset_flickr30k.json", "flickr30k-images", split)
        for picture in pictures:
            assert len(picture.captions) == CAPTIONS_PER_IMAGE
            with Image.open(picture.path) as image:
                assert (image.format, image.size) == ("JPEG", (96, 96))


def test_coco_has_its_folders_and_names_and_a_restval_split(world: Path) -> None:
    content = json.loads((world / "coco" / "dataset_coco.json").read_text())
    assert content["dataset"] == "coco"
    images = content["images"]
    assert Counter(image["split"] for image in images) == {"train": 10, "restval": 2, "val": 6, "test": 5}
    assert len({image["cocoid"] for image in images}) == len({image["imgid"] for image in images}) == len(images)
    for image in images:
        folder = "train2014" if image["split"] == "train" else "val2014"
        assert image["filepath"] == folder
        assert image["filename"] == f"COCO_{folder}_{image['cocoid']:012d}.jpg"
    there = {path.name for name in ("train2014", "val2014") for path in (world / "coco" / name).iterdir()}
    assert there == {image["filename"] for image in images}
    pairs = TASKS["coco"].read(world / "coco", "train+restval")
    assert len(pairs) == 12 * CAPTIONS_PER_IMAGE
    assert TASKS["coco"].read(world / "coco", "test")[0].images[0].parent.name == "val2014"


def test_sizes_are_those_of_the_data_set_unless_given() -> None:
    config = WorldConfig(val=7)
    for task in TASKS:
        assert config.sizes(task) == SIZES_BY_DEFAULT[task] | {"val": 7}
        assert SIZES_BY_DEFAULT[task]["val" if task == "vqav2" else "test"] >= 2500


def test_pictures_of_splits_and_data_sets_differ(world: Path) -> None:
    sidecars = {name: json.loads((world / name / "scenes.json").read_text()) for name in CONFIG.tasks}
    parts = [list(sidecars[name].values()) for name in ("vqav2", "snli_ve", "flickr30k", "coco")]
    parts.append([part["pictures"] for part in sidecars["nlvr2"].values()])
    shown = [{json.dumps(picture["objects"]) for picture in split.values()} for part in parts for split in part]
    assert sum(map(len, shown)) == len(set().union(*shown))


def test_a_seed_decides_every_file(world: Path, wide: bool, tmp_path: Path) -> None:
    """Images are compared as scenes, since their compression depends on libraries; see `test_scenes` for pixels."""
    digest = hashlib.sha256()
    for path in sorted(path for path in world.rglob("*.json*") if path.name != WORLD):
        digest.update(path.read_bytes())
    assert digest.hexdigest()[:16] == ("5fdcdfc33b28ca36" if wide else "04d670f5ae1735a0")
    write_world(tmp_path, replace(CONFIG, train=12, tasks=("vqav2", "nlvr2"), wide=wide))
    for name in ("vqav2/val2014/COCO_val2014_000000000001.png", "nlvr2/images/dev/dev-0-0-img0.png"):
        assert (world / name).read_bytes() == (tmp_path / name).read_bytes()
    other, _ = write_world(tmp_path / "other", WorldConfig(seed=4, train=6, val=6, test=0, tasks=("vqav2", "snli_ve")))
    name = "v2_OpenEnded_mscoco_val2014_questions.json"
    assert (other / name).read_bytes() != (world / "vqav2" / name).read_bytes()


def test_some_data_sets_only_and_nothing_foreign_is_replaced(tmp_path: Path) -> None:
    write_world(tmp_path, WorldConfig(train=4, val=4, test=0, tasks=("nlvr2",)))
    assert [path.name for path in tmp_path.iterdir()] == ["nlvr2"]
    (tmp_path / "snli_ve").mkdir()
    (tmp_path / "snli_ve" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="give an empty or new folder"):
        write_world(tmp_path, WorldConfig(train=3, val=3, test=3, tasks=("snli_ve",)))
    assert (tmp_path / "snli_ve" / "letter.txt").read_text() == "dear"


def test_what_was_written_is_not_written_again(tmp_path: Path) -> None:
    config = WorldConfig(train=4, val=4, test=0, tasks=("nlvr2", "snli_ve"), out=tmp_path)
    write_world(tmp_path, replace(config, tasks=("nlvr2",)))  # ended here
    before = (tmp_path / "nlvr2" / "train.json").stat().st_mtime_ns
    config.check_places()
    assert write_world(tmp_path, config) == [tmp_path / "nlvr2", tmp_path / "snli_ve"]
    assert (tmp_path / "nlvr2" / "train.json").stat().st_mtime_ns == before
    write_world(tmp_path, replace(config, force=True))
    assert (tmp_path / "nlvr2" / "train.json").stat().st_mtime_ns > before
    with pytest.raises(InputError, match="nlvr2"):
        replace(config, val=5).check_places()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="'gqa' is unknown"):
        WorldConfig(tasks=("vqav2", "gqa"))
    with pytest.raises(InputError, match=r"'val' .* must be .* in \[.* not -1"):
        WorldConfig(val=-1)
    with pytest.raises(InputError, match=r"'questions_per_image' .* must be .* in \[.* not 0"):
        WorldConfig(questions_per_image=0)


def test_the_log_reports_how_many_captions_fit_another_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "pumer"):
        write_world(tmp_path, WorldConfig(train=5, val=5, test=100, tasks=("flickr30k",)))
    assert "among 20 images" in caplog.text


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / ".nlvr2.0123abcd"
    (left / "images").mkdir(parents=True)
    run(WorldConfig(train=4, val=4, test=0, tasks=("nlvr2",), out=tmp_path))
    assert not left.exists() and (tmp_path / "nlvr2" / WORLD).is_file()


def test_a_world_of_other_settings_is_refused_by_their_names(tmp_path: Path) -> None:
    config = WorldConfig(train=4, val=4, test=0, tasks=("nlvr2",), out=tmp_path)
    run(config)
    with pytest.raises(InputError, match=r"nlvr2.*\(wide\).*--force"):
        run(replace(config, wide=True))
    with pytest.raises(InputError, match=r"nlvr2.*\(seed\).*--force"):
        run(replace(config, seed=1))
