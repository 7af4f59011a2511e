import json

import pytest
import torch

from pumer.checkpoint import load_processor
from pumer.tasks import TASKS, Flickr30k
from pumer.tasks.loading import make_inputs
from pumer.tasks.retrieval import NEGATIVES, images_of, read_images
from pumer.utils.errors import InputError

TASK = Flickr30k()
FILE = "dataset_flickr30k.json"


def draw(pairs, index, seed=0, epoch=0):
    return TASK.draw(pairs, index, seed, epoch)


def test_pairs_are_read(tiny_flickr):
    pairs = Flickr30k.read(tiny_flickr, "val")
    assert len(pairs) == 20
    assert (pairs[6].id, pairs[6].image_id, pairs[6].text) == (36, 7, "it is green it it")
    assert pairs[6].images == (tiny_flickr / "flickr30k-images" / "1007.jpg",)
    limited = Flickr30k.read(tiny_flickr, "val", limit=2)
    assert [pair.image_id for pair in limited] == [6] * 5 + [8] * 5
    assert [image.captions for image in images_of(pairs)][1][1] == (36, "it is green it it")
    (tiny_flickr / "dataset_flickr30k.json").rename(tiny_flickr / "dataset_coco.json")
    (tiny_flickr / "flickr30k-images").rename(tiny_flickr / "val2014")
    assert len(TASKS["coco"].read(tiny_flickr, "test")) == 40


def test_negatives_belong_to_other_images(tiny_flickr):
    pairs = Flickr30k.read(tiny_flickr, "train")
    own = {pair.image_id: {other.text for other in pairs if other.image_id == pair.image_id} for pair in pairs}
    seen = set()
    for index, pair in enumerate(pairs):
        drawn = draw(pairs, index)
        assert (drawn.id, drawn.text) == (pair.id, pair.text)
        assert len(drawn.others) == len(set(drawn.others)) == NEGATIVES
        assert own[pair.image_id].isdisjoint(drawn.others)
        seen |= set(drawn.others)
    assert seen == {pair.text for pair in pairs}


def test_negatives_are_a_function_of_seed_epoch_and_index(tiny_flickr):
    pairs = Flickr30k.read(tiny_flickr, "train")
    assert draw(pairs, 3, 1, 2) == draw(pairs, 3, 1, 2)
    drawn = [draw(pairs, 3, seed, epoch).others for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(drawn)) == 4
    assert draw(pairs, 4).others != draw(pairs, 3).others


def test_too_few_captions_to_draw_from(tiny_flickr):
    pairs = Flickr30k.read(tiny_flickr, "train", limit=3)
    with pytest.raises(InputError, match="draws 15 captions of other images, not 10; use more images"):
        draw(pairs, 0)


@pytest.mark.parametrize("family", ["vilt", "meter"])
def test_scores_of_a_batch_are_those_of_its_pairs(tiny_flickr, tiny_vilt, tiny_meter, family):
    folder = str({"vilt": tiny_vilt, "meter": tiny_meter}[family])
    model = TASK.model(folder, ()).eval()
    model.rank_output.weight.data.normal_()
    inputs = make_inputs(load_processor(folder), 12)
    pairs = Flickr30k.read(tiny_flickr, "train")
    drawn = [draw(pairs, index) for index in (0, 7, 29)]
    batch = TASK.collate(drawn, inputs)
    assert batch["inputs"]["input_ids"].shape[0] == 48
    assert batch["inputs"]["pixel_values"].shape[0] == 3
    with torch.no_grad():
        scores = TASK.logits(model, batch)
        for row, pair in enumerate(drawn):
            for column in (0, 1, 7, 15):
                text = (pair.text, *pair.others)[column]
                words = inputs.tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
                apart = model(**words, **inputs.pixels(pair.images)).logits[0, 0]
                assert abs(scores[row, column] - apart) < 1e-4
    assert scores.std() > 1e-2


def test_a_compiled_meter_encodes_each_image_once_too(tiny_flickr, tiny_meter):
    model, seen = TASK.model(str(tiny_meter), ()), []
    pairs = Flickr30k.read(tiny_flickr, "train")
    batch = TASK.collate([draw(pairs, 0)], make_inputs(load_processor(tiny_meter), 12))
    compiled = torch.compile(model, backend="eager")
    compiled.forward = lambda **inputs: seen.append(len(inputs["pixel_values"])) or model(**inputs)
    TASK.logits(compiled, batch)
    assert seen == [1]


def test_loss_is_ranking_plus_half_of_matching():
    scores = torch.randn(3, 16, dtype=torch.float64) * 2
    right = scores.exp()[:, 0] / scores.exp().sum(dim=1)
    belongs = 1 / (1 + (-scores).exp())
    matching = (-belongs[:, 0].log().mean() - (1 - belongs[:, 1:]).log().mean()) / 2
    loss = TASK.loss(scores, {"targets": torch.zeros(3, dtype=torch.int64)})
    assert loss.item() == pytest.approx((-right.log().mean() + matching / 2).item(), rel=1e-5)


def test_training_pairs_are_scored_by_their_own_caption(tiny_flickr):
    pairs = Flickr30k.read(tiny_flickr, "train")[:2]
    columns = TASK.choose(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])).tolist()
    assert TASK.scores(pairs, [TASK.labels[column] for column in columns]).tolist() == [1, 0]


def test_queries_and_their_scores(tiny_flickr):
    queries = TASK.queries(Flickr30k.read(tiny_flickr, "val", limit=2))
    assert [query.id for query in queries[:3]] == ["image 6", "image 8", "caption 30"]
    assert queries[0].answers == ("30", "31", "32", "33", "34")
    assert queries[2].answers == ("6",)
    assert queries[0].source == queries[2].source == "6", "a image and its captions"
    answers = ["40 34 1", "1 2 3 4 5 6 42", "8 6", "6 8"] + ["8"] * 8
    assert TASK.scores(queries, answers).tolist() == [0, 0, 0, 1] + [0] * 3 + [1] * 5
    metrics = {name: sum(value for value, _ in found) for name, found in TASK.metrics(queries, answers).items()}
    assert metrics == {
        "text retrieval, recall@1": 0,
        "text retrieval, recall@5": 1,
        "text retrieval, recall@10": 2,
        "image retrieval, recall@1": 6,
        "image retrieval, recall@5": 7,
        "image retrieval, recall@10": 7,
    }


def test_a_result_file_is_scored_from_the_annotations(tiny_flickr, tmp_path):
    queries = TASK.truth(tiny_flickr / "dataset_flickr30k.json", split="val")
    assert queries == TASK.queries(Flickr30k.read(tiny_flickr, "val"))
    answers = [query.answers[0] for query in queries]
    TASK.write_submission(tmp_path / "found.json", queries, answers)
    assert json.loads((tmp_path / "found.json").read_text())[0] == {"query": "image 6", "found": answers[0]}
    found = TASK.read_submission(tmp_path / "found.json")
    assert found == [(query.id, answer) for query, answer in zip(queries, answers, strict=True)]


def read_split(root, split="val"):
    return read_images(root / FILE, "flickr30k-images", split)


def edit(root, change):
    content = json.loads((root / FILE).read_text())
    change(content)
    (root / FILE).write_text(json.dumps(content))


def test_reads_a_split_in_file_order(tiny_flickr):
    images = read_split(tiny_flickr)
    assert [image.id for image in images] == [6, 7, 8, 9]
    assert images[0].path == tiny_flickr / "flickr30k-images" / "1006.jpg"
    assert images[0].captions[1] == (31, "it is red it")
    assert [len(read_split(tiny_flickr, split)) for split in ("train", "test", "train+val")] == [6, 8, 10]


def test_folders_of_coco(tiny_flickr):
    (tiny_flickr / "flickr30k-images").rename(tiny_flickr / "train2014")
    (tiny_flickr / "val2014").mkdir()

    def change(content):
        for entry in content["images"]:
            entry["filepath"] = "train2014"
        last = content["images"][-1]
        last |= {"split": "restval", "filepath": "val2014"}
        last["sentences"] += [sentence | {"sentid": 900 + sentence["sentid"]} for sentence in last["sentences"][:2]]
        (tiny_flickr / "train2014" / last["filename"]).rename(tiny_flickr / "val2014" / last["filename"])

    edit(tiny_flickr, change)
    assert len(read_split(tiny_flickr, "train")) == 6
    both = read_split(tiny_flickr, "train+restval")
    assert len(both) == 7
    assert both[-1].path.parent.name == "val2014"
    assert len(both[-1].captions) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("images"), "no list 'images'"),
        (lambda content: content["images"][6].pop("filename"), r"entry 6 of 'images' has no 'filename' \(str\)"),
        (lambda content: content["images"][6].update(filepath=3), "'filepath' of image 1006.jpg must be text, not 3"),
        (lambda content: content["images"][6].update(sentences=[]), "image 1006.jpg has no captions"),
        (lambda content: content["images"][6]["sentences"][0].pop("raw"), "1006.jpg has no 'raw'"),
    ],
)
def test_what_is_wrong_is_named(tiny_flickr, change, message):
    edit(tiny_flickr, change)
    with pytest.raises(InputError, match=message):
        read_split(tiny_flickr)


def test_missing_or_broken_file(tiny_flickr):
    with pytest.raises(
        InputError, match="must be one of train, val, test, restval, or several joined by '\\+', not 'al'"
    ):
        read_split(tiny_flickr, "train+al")
    (tiny_flickr / FILE).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_split(tiny_flickr)
    (tiny_flickr / FILE).unlink()
    with pytest.raises(InputError, match=r"does not exist; .* as downloaded"):
        read_split(tiny_flickr)
