import json

import pytest
from PIL import Image

from pumer.settings.data import PrepareConfig
from pumer.tasks import VQAv2
from pumer.tasks.prepare import run
from pumer.utils.errors import InputError

QUESTIONS = [(1, "What colour is it?", "The Red."), (1, "Where is it?", "on the moon"), (2, "Is it?", "yes"),
             (3, "Is it red?", "no")]  # fmt: skip


@pytest.fixture
def with_genome(tiny_vqa):
    """VQAv2 with three images of Visual Genome, of which the second is one of the val split."""
    images = [
        {"image_id": number, "coco_id": coco, "url": f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg"}
        for number, coco, folder in ((1, None, "VG_100K"), (2, 4, "VG_100K"), (3, 300_000, "VG_100K_2"))
    ]
    for image in images:
        path = tiny_vqa.joinpath(*image["url"].split("/")[-2:])
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(path)
    entries = [
        {"id": image, "qas": [{"qa_id": 10 + number, "image_id": image, "question": question, "answer": answer}]}
        for number, (image, question, answer) in enumerate(QUESTIONS)
    ]
    (tiny_vqa / "image_data.json").write_text(json.dumps(images))
    (tiny_vqa / "question_answers.json").write_text(json.dumps(entries))
    return tiny_vqa


def test_questions_of_visual_genome_come_on_request(with_genome):
    plain, more = VQAv2.read(with_genome, "train"), VQAv2.read(with_genome, "train+vg")
    assert more[: len(plain)] == plain
    red, no = more[len(plain) :]  # the answer of one is unknown to VQAv2, the image of another is evaluated on
    assert (red.id, red.text, red.answers) == ("vg10", "What colour is it?", ("red",) * 10)
    assert red.images == (with_genome / "VG_100K" / "1.jpg",)
    assert (no.id, no.images) == ("vg13", (with_genome / "VG_100K_2" / "3.jpg",))
    assert VQAv2(("no", "red")).targets([red, no]).tolist() == [[0, 1], [1, 0]]
    assert VQAv2.read(with_genome, "train+vg", limit=2) == [more[0], more[13]]


def test_they_are_prepared_with_their_images(with_genome, tmp_path):
    run(PrepareConfig(task="vqav2", root=with_genome, out=tmp_path / "out", splits=("train+vg", "val")), progress=False)
    assert len(VQAv2.read(tmp_path / "out", "train+vg")) == 26


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "image_data.json",
            None,
            r"image_data\.json does not exist; .* question_answers\.json and image_data\.json for split train\+vg",
        ),
        ("image_data.json", "[", r"image_data\.json is not valid JSON"),
        ("image_data.json", "{}", "holds no list"),
        ("image_data.json", "[]", "has no image 1, which question_answers.json asks about"),
        ("image_data.json", "[{}]", r"entry 0 has no 'image_id' \(int\)"),
        ("image_data.json", '[{"image_id": 1, "url": "../../etc/1.jpg"}]', "must end like VG_100K/1.jpg"),
        ("image_data.json", '[{"image_id": 1, "url": "VG_100K/1.jpg", "coco_id": {}}]', "'coco_id' of image 1 must be"),
        (
            "image_data.json",
            json.dumps([{"image_id": 1, "url": "VG_100K/1.jpg"}, {"image_id": 1, "url": "VG_100K/2.jpg"}]),
            r"image_data\.json has image_id 1 2 times",
        ),
        (
            "question_answers.json",
            json.dumps([{"qas": [{"qa_id": 7, "image_id": 1, "question": "q", "answer": "red"}] * 2}]),
            r"question_answers\.json has qa_id 7 2 times",
        ),
        ("question_answers.json", "[{}]", r"entry 0 has no 'qas' \(list\)"),
        ("question_answers.json", '[{"qas": [{"qa_id": 1}]}]', r"a question has no 'image_id' \(int\)"),
    ],
)
def test_damage_is_named(with_genome, file, content, message):
    (with_genome / file).unlink()
    if content is not None:
        (with_genome / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        VQAv2.read(with_genome, "train+vg")
    assert "\n" not in str(caught.value)
