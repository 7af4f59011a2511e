"""The page: what is asked on the left, what came of it on the right; a second tab shows results."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image

from pumer.app import rendering, results
from pumer.app.comparing import ComparedModel
from pumer.data.images import decode, image_bytes
from pumer.overview import methods
from pumer.settings.app import AppConfig
from pumer.utils.errors import InputError, out_of_memory
from pumer.world.scenes import generator, make_scene, render
from pumer.world.sentences import ask

logger = logging.getLogger(__name__)

EXAMPLES = 6
WAITING = 256
"""Questions that wait at once; further ones are refused."""
KEPT_S = 3600
"""Seconds after which an uploaded file is removed while the page is served."""
PRUNE, MERGE = 20, 60
"""Percent of the image tokens, at first: about what the paper's ratios remove."""
CSS = (
    rendering.STYLE
    + """
.gradio-container {max-width: 1360px !important; margin: 0 auto !important}
.gradio-container footer {display: none}
#title h1 {font-size: 22px; margin: 0}
#title p {margin: 2px 0 0; color: var(--body-text-color-subdued)}
#examples .grid-wrap {padding: 0; min-height: 0; max-height: none}
#examples .grid-container {gap: 6px}
"""
)
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONOSPACED = ["ui-monospace", "Consolas", "monospace"]

class Upload(gr.Image):
    """An image whose file is neither opened nor fetched by Gradio: what it holds is for our own reader to bound."""

    def get_block_name(self) -> str:
        """The name of what shows it."""
        return "image"

    def preprocess(self, payload: Any) -> str | None:
        """The uploaded file."""
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: Any) -> str | None:
        """The uploaded file, in its place; addresses are refused."""
        if "://" in str(url_or_file_path):
            raise gr.Error("an image is a file to upload, not an address", print_exception=False)
        moved: str | None = await super().async_move_resource_to_block_cache(url_or_file_path)
        return moved
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class Page:
    """What the page's controls do.

    Attributes:
        models: by name, in the order in which they are offered.
        config: the bounds of what is asked.
    """

    def __init__(self, models: Mapping[str, ComparedModel], config: AppConfig) -> None:
        self.models, self.config = models, config
        folder = config.results or (results.HERE if results.HERE.is_dir() else None)
        self.folder, self.curves = folder, results.curves(folder) if folder else {}
        self.about = {name: text.rpartition(" (")[0] for name, text in methods().items()}

    def ask(self, model: str, file: str | None, question: str, method: str, prune: float, merge: float) -> str:
        """The comparison as HTML, or the line why there is none."""
        try:
            image, text = self._image(file), self._question(question)
            found = self.models[model].ask(image, text, method, prune / 100, merge / 100)
            return rendering.comparison(found, model)
        except InputError as error:
            return rendering.refusal(str(error))
        except Exception as error:  # a model or its processor raises whatever it stumbles over
            if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and out_of_memory(error)):
                return rendering.refusal("the model needs more memory than there is; ask a smaller one")
            logger.exception("a question failed")
            return rendering.refusal("the model failed; the terminal that `pumer app` runs in says how")

    def check(self, file: str | None) -> str:
        """What is wrong with an image, as soon as it is uploaded."""
        try:
            image = self._image(file)
        except InputError as error:
            return rendering.refusal(str(error))
        return rendering.page(
            rendering.paragraph(f"An image of {image.width} x {image.height} pixels. Now ask about it.")
        )

    def _image(self, file: str | None) -> Image.Image:
        if file is None:
            raise InputError("there is no image; upload one, or choose an example")
        try:
            if Path(file).stat().st_size > self.config.max_bytes:
                raise InputError(f"is larger than {self.config.max_bytes} bytes")
            return decode(image_bytes(Path(file)), self.config.max_image_pixels)
        except InputError as error:
            raise InputError(f"the image {error}; choose another one") from error
        except OSError as error:
            raise InputError("the image is not there any more; upload it again") from error

    def _question(self, question: str | None) -> str:
        text = " ".join((question or "").split())
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
        return gr.HTML(shown, visible=small, padding=False)

    def show(self, name: str | None) -> str:
        """A plot of results with its points."""
        if name is None or name not in self.curves:
            return rendering.page(*map(rendering.paragraph, self._without_results()))
        curve = self.curves[name]
        about = rendering.paragraph(f"Accuracy {curve.about}. The line joins what no other point beats in both.")
        plot, table = results.plot(curve), results.table(curve)
        return rendering.page(f'<div class="beside"><div>{plot}{about}</div><div>{table}</div></div>')

    def _without_results(self) -> list[str]:
        where = f"{self.folder} holds no" if self.folder else "No folder was named that holds"
        return [
            f"{where} results with speed and accuracy of one model. One file holds both after `pumer tune` or "
            "`pumer demo`; of `pumer benchmark MODEL output=...` and `pumer evaluate MODEL output=...` two, which are "
            "joined if they are of the same model, reduction and image size.",
            "Show them: pumer app results=FOLDER",
        ]

def built(page: Page, folder: Path) -> gr.Blocks:
    """The page with its controls; example images are written into a folder."""
    first = next(iter(page.models))
    offered, examples = page.models[first].strength.methods, _examples(folder)
    blocks: gr.Blocks
    with gr.Blocks(title="pumer", analytics_enabled=False, delete_cache=(KEPT_S // 6, KEPT_S)) as blocks:
        gr.Markdown(
            "# pumer\nA vision-language model beside itself with fewer tokens: what it answers, how long it takes, and "
            "what it looks at.",
            elem_id="title",
        )
        with gr.Tab("Ask"), gr.Row():
            with gr.Column(scale=2, min_width=320):
                image = Upload(
                    examples[0][0], type="filepath", sources=["upload", "clipboard"], height=260, label="Image"
                )
                gallery = gr.Gallery(
                    [file for file, _ in examples],
                    columns=EXAMPLES,
                    height="auto",
                    allow_preview=False,
                    label="Examples from the built-in world",
                    buttons=[],
                    elem_id="examples",
                )
                question = gr.Textbox(examples[0][1], label="Question", max_lines=4)
                model = gr.Dropdown(list(page.models), value=first, label="Model", interactive=True)
                note = page.note(first)
                method = gr.Dropdown(offered, value=offered[0], label="Method", info=page.about[offered[0]])
                unit = "% of the image tokens"
                prune = gr.Slider(0, 90, PRUNE, step=5, label="Prune", info=unit)
                merge = gr.Slider(0, 90, MERGE, step=5, label="Merge", info=unit)
                button = gr.Button("Ask", variant="primary")
            with gr.Column(scale=3, min_width=320):
                result = gr.HTML(elem_id="result", padding=False)
        with gr.Tab("Results"):
            names = list(page.curves)
            chosen = gr.Dropdown(names, value=names[0] if names else None, label="Results", visible=bool(names))
            shown = gr.HTML(page.show(names[0] if names else None), padding=False)
        asked: dict[str, Any] = {"fn": page.ask, "inputs": [model, image, question, method, prune, merge]}
        asked |= {"outputs": result, "concurrency_id": "model", "concurrency_limit": 1, "trigger_mode": "always_last"}
        quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on([button.click, question.submit, prune.input, merge.input], **asked, api_name="ask")
        controls = [model, method, prune, merge]
        model.input(page.choose_model, controls, [*controls[1:], note], **quick).then(**asked, **quick)
        method.input(page.choose_method, controls, controls[1:], **quick).then(**asked, **quick)

        def choose_example(event: gr.SelectData) -> list[str]:
            return examples[event.index]

        gallery.select(choose_example, None, [image, question], **quick).then(**asked, **quick)
        image.upload(page.check, image, result, **quick)
        chosen.input(page.show, chosen, shown, **quick)
        blocks.load(**asked, **quick)
    blocks.queue(max_size=WAITING, api_open=False)
    blocks.has_launched = True  # or Gradio, which does not know that it is mounted, would take any path for an upload
    return blocks

def application(page: Page, folder: Path) -> FastAPI:
    """The application of HTTP; it asks nothing of other machines, nor does the page."""
    theme = gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONOSPACED)
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    mounted: FastAPI = gr.mount_gradio_app(
        outer,
        built(page, folder),
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

def _examples(folder: Path) -> list[list[str]]:
    """Images of the built-in world, each with a question."""
    found = []
    for number in range(EXAMPLES):
        chance = generator(0, "val", number)
        scene, path = make_scene(chance), folder / f"example-{number + 1}.png"
        Image.fromarray(render(scene)).save(path)
        found.append([str(path), ask(scene, chance).text])
    return found
