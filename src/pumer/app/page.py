"""The page: what is asked on the left, what came of it on the right; a second tab shows results."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from pumer.app import rendering, results
from pumer.app.bounds import KEPT_S, Bounded, keep_the_newest
from pumer.app.comparing import ComparedModel
from pumer.data.images import decode, image_bytes
from pumer.overview import methods
from pumer.settings.app import AppConfig
from pumer.utils.errors import InputError, out_of_memory, unknown
from pumer.world.questions import ask
from pumer.world.scenes import generator, make_scene, render

logger = logging.getLogger(__name__)

EXAMPLES = 6
WAITING = 256
"""Questions that wait at once; further ones are refused."""
PRUNE, MERGE = 20, 60
"""Percent of the image tokens, at first: about what the paper's ratios remove."""
CSS = (
    rendering.STYLE
    + """
.gradio-container {max-width: 1360px !important; margin: 0 auto !important}
.gradio-container footer {display: none}
#title h1 {font-size: 22px; margin: 0}
#title p {margin: 2px 0 0; color: var(--body-text-color-subdued)}
#image img {width: 100%; height: 100%; object-fit: contain}
#examples > .gallery {display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px}
#examples .container, #examples img {width: 100% !important; height: auto !important; aspect-ratio: 1}
#examples .gallery-item, #examples img {border-radius: 6px}
.html-container {padding: 0 !important}
"""
)
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONOSPACED = ["ui-monospace", "Consolas", "monospace"]


class Page:
    """What the page's controls do.

    Attributes:
        models: by name, in the order in which they are offered.
        config: the bounds of what is asked.
        uploads: folder of the files that are uploaded, and of nothing else.
    """

    def __init__(self, models: Mapping[str, ComparedModel], config: AppConfig, uploads: Path) -> None:
        self.models, self.config, self.uploads = models, config, uploads
        folder = config.results or (results.HERE if results.HERE.is_dir() else None)
        self.folder, self.curves = folder, results.curves(folder) if folder else {}
        self.about = {name: text.rpartition(" (")[0] for name, text in methods().items()}

    def ask(self, model: Any, upload: Any, question: Any, method: Any, prune: Any, merge: Any) -> str:
        """Ask a model, and its reduced self; nothing is known about what a client sends.

        Args:
            model: A name in ``models``.
            upload: An image, as Gradio describes a file: ``{"path": ...}``.
            question: The text.
            method: A name among the model's methods.
            prune: Percent of the image tokens to prune, from 0 to 100.
            merge: Percent of the image tokens to merge into others, likewise.

        Returns:
            The comparison as HTML, or the line why there is none.
        """
        try:
            if not isinstance(model, str) or model not in self.models:
                raise InputError(unknown("model", model, self.models))
            amounts = _share("prune", prune), _share("merge", merge)
            image, text = self._image(upload), self._question(question)
            return rendering.comparison(self.models[model].ask(image, text, method, *amounts), model)
        except InputError as error:
            return rendering.refusal(str(error))
        except Exception as error:  # a model or its processor raises whatever it stumbles over
            if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
                return rendering.refusal("the model needs more memory than there is; ask a smaller one")
            logger.exception("a question failed")
            return rendering.refusal("the model failed; the terminal that `pumer app` runs in says how")

    def check(self, upload: Any) -> str:
        """Look at an image as soon as it is uploaded.

        Args:
            upload: As of `ask`.

        Returns:
            HTML: its size, or the line why it cannot be asked about.
        """
        try:
            image = self._image(upload)
        except InputError as error:
            return rendering.refusal(str(error))
        return rendering.page(rendering.paragraph(f"{image.width} x {image.height} pixels. Now ask about it."))

    def _image(self, upload: Any) -> Image.Image:
        if upload is None:
            raise InputError("there is no image; upload one, or choose an example")
        try:
            file = Path(upload["path"]).resolve()
            if not file.is_relative_to(self.uploads.resolve()):
                raise InputError("was not uploaded here")
            if (size := file.stat().st_size) > self.config.max_bytes:
                raise InputError(f"is too large ({size:,} bytes; at most {self.config.max_bytes:,} are taken)")
            return decode(image_bytes(file), self.config.max_image_pixels)
        except InputError as error:
            raise InputError(f"the image {error}; choose another one") from error
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError("the image is not there any more; upload it again") from error

    def _question(self, question: Any) -> str:
        text = " ".join(question.split()) if isinstance(question, str) else ""
        if not text:
            raise InputError("there is no question; write one")
        if len(text) > self.config.max_characters:
            most = self.config.max_characters
            raise InputError(f"the question has {len(text):,} characters; at most {most:,} are taken: shorten it")
        return text

    def choose_model(self, model: str, method: str, prune: float, merge: float) -> list[Any]:
        """The controls for another model: its methods, the sliders, and what it knows."""
        offered = self.models[model].strength.methods
        chosen = method if method in offered else offered[0]
        sliders = self.choose_method(model, chosen, prune, merge)
        return [gr.Dropdown(choices=offered, value=chosen, info=self.about[chosen]), *sliders[1:], self.note(model)]

    def choose_method(self, model: str, method: str, prune: float, merge: float) -> list[Any]:
        """The controls for another method, which removes as many tokens as the one before."""
        prunes, merges = self.models[model].strength.amounts(method)
        both = min(prune + merge, 90)
        values = (prune, merge) if prunes and merges else (both if prunes else 0, both if merges else 0)
        if prunes and merges and not (prune and merge):
            values = (round(both / 20) * 5, both - round(both / 20) * 5)
        shown = (gr.Slider(visible=used, value=x) for used, x in zip((prunes, merges), values, strict=True))
        return [gr.Dropdown(info=self.about[method]), *shown]

    def note(self, model: str) -> Any:
        """What a small model does not know; nothing of another one."""
        small = self.models[model].small
        shown = rendering.page(rendering.paragraph(rendering.foreign(model), "note"))
        return gr.HTML(shown, visible=small, apply_default_css=False)

    def show(self, name: str | None) -> str:
        """A plot of results with its points."""
        if name is None or name not in self.curves:
            return rendering.page(*map(rendering.paragraph, self._without_results()))
        curve = self.curves[name]
        about = rendering.paragraph(f"Accuracy {curve.about}. The line joins what no other point beats in both.")
        plot, table = results.plot(curve), results.table(curve)
        return rendering.page(f'<div class="beside"><div class="sticky">{plot}{about}</div><div>{table}</div></div>')

    def _without_results(self) -> list[str]:
        where = f"{self.folder} holds no" if self.folder else "No folder was named that holds"
        return [
            f"{where} results with speed and accuracy of one model. One file holds both after `pumer tune` or "
            "`pumer demo`; of `pumer benchmark MODEL output=...` and `pumer evaluate MODEL output=...` two, which are "
            "joined if they are of the same model, reduction, image size and settings.",
            "Show them: pumer app results=FOLDER",
        ]


class _Controls(NamedTuple):
    """What stands on the page, and what can be changed."""

    image: Any
    gallery: Any
    question: Any
    model: Any
    note: Any
    method: Any
    prune: Any
    merge: Any
    button: Any
    result: Any
    curve: Any
    shown: Any


def built(page: Page) -> Any:
    """The page with its controls."""
    examples = _examples(page.uploads)
    with gr.Blocks(title="pumer", analytics_enabled=False, delete_cache=(KEPT_S // 6, KEPT_S)) as blocks:
        _connect(blocks, page, _controls(page, examples), examples)
    blocks.state_session_capacity = WAITING  # pages; of each Gradio keeps the last answer
    blocks.queue(max_size=WAITING, api_open=False)
    keep_the_newest(blocks._queue)
    blocks.has_launched = True  # or Gradio, which does not know that it is mounted, would take any path for an upload
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = partial(_in_its_place, block.async_move_resource_to_block_cache)
    return blocks


def _controls(page: Page, examples: Sequence[Sequence[str]]) -> _Controls:
    first, names = next(iter(page.models)), list(page.curves)
    offered, (file, text) = page.models[first].strength.methods, examples[0]
    gr.Markdown(
        "# pumer\nA vision-language model beside itself with fewer tokens: what it answers, how long it takes, and "
        "what it looks at.",
        elem_id="title",
    )
    with gr.Tab("Ask"), gr.Row():
        with gr.Column(scale=2, min_width=320):
            sources: Any = ["upload", "clipboard"]
            image = gr.Image(file, type="filepath", sources=sources, height=260, label="Image", elem_id="image")
            gallery = gr.Dataset(
                components=[image],
                samples=[[file] for file, _ in examples],
                type="index",
                label="Examples from the built-in world",
                elem_id="examples",
            )
            question = gr.Textbox(text, label="Question", max_lines=4)
            model = gr.Dropdown(list(page.models), value=first, label="Model", interactive=True)
            note = page.note(first)
            method = gr.Dropdown(offered, value=offered[0], label="Method", info=page.about[offered[0]])
            unit = "% of the image tokens"
            prune = gr.Slider(0, 90, PRUNE, step=5, label="Prune", info=unit)
            merge = gr.Slider(0, 90, MERGE, step=5, label="Merge", info=unit)
            button = gr.Button("Ask", variant="primary")
        with gr.Column(scale=3, min_width=320):
            result = gr.HTML(elem_id="result", apply_default_css=False)
    with gr.Tab("Results"):
        curve = gr.Dropdown(names, value=names[0] if names else None, label="Results", visible=bool(names))
        shown = gr.HTML(page.show(names[0] if names else None), apply_default_css=False)
    return _Controls(image, gallery, question, model, note, method, prune, merge, button, result, curve, shown)


def _connect(blocks: Any, page: Page, on: _Controls, examples: Sequence[Sequence[str]]) -> None:
    """What happens when a control is used."""
    chosen = [on.model, on.method, on.prune, on.merge]
    asked: dict[str, Any] = {"fn": page.ask, "inputs": [on.model, on.image, on.question, *chosen[1:]]}
    asked |= {
        "preprocess": False,
        "outputs": on.result,
        "concurrency_id": "model",
        "concurrency_limit": 1,
        "trigger_mode": "always_last",
    }
    hidden: dict[str, Any] = {"api_visibility": "private"}
    quick = hidden | {"show_progress": "hidden"}
    gr.on([on.button.click, on.question.submit, on.prune.input, on.merge.input], **asked, api_name="ask")
    on.model.input(page.choose_model, chosen, [*chosen[1:], on.note], **quick).then(**asked, **hidden)
    on.method.input(page.choose_method, chosen, chosen[1:], **quick).then(**asked, **hidden)
    on.gallery.click(examples.__getitem__, on.gallery, [on.image, on.question], **quick).then(**asked, **hidden)
    on.image.upload(page.check, on.image, on.result, preprocess=False, **quick)
    on.curve.input(page.show, on.curve, on.shown, **quick)
    blocks.load(**asked, **hidden)


async def _in_its_place(move: Callable[[Any], Awaitable[str | None]], place: Any) -> str | None:
    """Where Gradio keeps a file; it would fetch addresses from other machines."""
    if "://" in str(place):
        raise gr.Error("an image is a file to upload, not an address", print_exception=False)
    return await move(place)


def application(page: Page) -> FastAPI:
    """The application of HTTP; it asks nothing of other machines, nor does the page."""
    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONOSPACED)
    theme.set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    outer.add_middleware(Bounded, config=page.config, uploads=page.uploads)
    mounted: FastAPI = gr.mount_gradio_app(
        outer,
        built(page),
        path="/",
        theme=theme,
        css=CSS,
        max_file_size=page.config.max_bytes,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
    )
    return mounted


def _share(name: str, percent: Any) -> float:
    if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 <= percent <= 100:
        raise InputError(f"{name} is {percent!r:.40}; give a percentage of the image tokens, from 0 to 100")
    return percent / 100


def _examples(folder: Path) -> list[list[str]]:
    """Images of the built-in world, each with a question."""
    found = []
    for number in range(EXAMPLES):
        chance = generator(0, "val", number)
        scene, path = make_scene(chance), folder / f"example-{number + 1}.png"
        Image.fromarray(render(scene)).save(path)
        found.append([str(path), ask(scene, chance).text])
    return found
