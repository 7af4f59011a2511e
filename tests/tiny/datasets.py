"""Fixtures: data folders of every task in its official format, with a handful of images of one colour."""

import json

import pytest
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


@pytest.fixture
def tiny_vqa(tmp_path):
    """Data folder in the official VQAv2 format: 24 training and 12 validation questions on plain pictures."""
    root = tmp_path / "vqa"
    for folder, images in (("train2014", 12), ("val2014", 6)):
        (root / folder).mkdir(parents=True)
        questions, annotations = [], []
        for image in range(images):
            name, rgb = list(COLOURS.items())[image % 3]
            suffix = "png" if image % 2 else "jpg"
            Image.new("RGB", (40, 32), rgb).save(root / folder / f"COCO_{folder}_{image:012d}.{suffix}")
            asked = [("what colour is this?", "what colour", "other", name)]
            asked += [("is it red?", "is it", "yes/no", "yes" if name == "red" else "no")]
            for number, (question, kind, answer_type, answer) in enumerate(asked):
                key = {"image_id": image, "question_id": image * 1000 + number}
                questions.append(key | {"question": question})
                given = [{"answer_id": i + 1, "answer": answer, "answer_confidence": "yes"} for i in range(10)]
                annotations.append(
                    key
                    | {"answers": given, "multiple_choice_answer": answer}
                    | {"question_type": kind, "answer_type": answer_type}
                )
        questions_file = root / f"v2_OpenEnded_mscoco_{folder}_questions.json"
        questions_file.write_text(json.dumps({"questions": questions}))
        annotations_file = root / f"v2_mscoco_{folder}_annotations.json"
        annotations_file.write_text(json.dumps({"annotations": annotations}))
    return root


@pytest.fixture
def tiny_flickr(tmp_path):
    """Data folder in the format of Karpathy's Flickr30k: 6, 4 and 8 images of one colour with five captions each."""
    root = tmp_path / "flickr30k"
    (root / "flickr30k-images").mkdir(parents=True)
    images = []
    for split, count in (("train", 6), ("val", 4), ("test", 8)):
        for _ in range(count):
            number = len(images)
            name, rgb = list(COLOURS.items())[number % 3]
            shade = tuple(value * (number + 6) // 24 for value in rgb)
            Image.new("RGB", (40, 32), shade).save(root / "flickr30k-images" / f"{1000 + number}.jpg")
            raw = [
                f"{name}.",
                f"it is {name}",
                f"is this {name}? yes",
                f"this colour is {name}",
                f"what is this? {name}",
            ]
            sentences = [
                {"raw": f"{text} {' '.join(['it'] * (number % 5))}", "sentid": 5 * number + i, "imgid": number}
                for i, text in enumerate(raw)
            ]
            images.append({"filename": f"{1000 + number}.jpg", "imgid": number, "split": split, "sentences": sentences})
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return root


@pytest.fixture
def tiny_coco(tiny_flickr, tmp_path):
    """The same pictures as Karpathy's COCO: 4 to train on, 2 more in "restval", 4 and 8 to evaluate on."""
    root, content = tmp_path / "coco", json.loads((tiny_flickr / "dataset_flickr30k.json").read_text())
    for number, entry in enumerate(content["images"]):
        split = "restval" if number in (4, 5) else entry["split"]
        folder = "train2014" if split == "train" else "val2014"
        name, number = f"COCO_{folder}_{entry['imgid']:012d}.jpg", 7 * entry["imgid"]
        (root / folder).mkdir(parents=True, exist_ok=True)
        (tiny_flickr / "flickr30k-images" / entry["filename"]).rename(root / folder / name)
        entry |= {"filename": name, "filepath": folder, "split": split, "cocoid": number}
    last = content["images"][-1]
    last["sentences"].append({"raw": "what is it", "sentid": 999, "imgid": last["imgid"]})  # some have more than five
    (root / "dataset_coco.json").write_text(json.dumps(content | {"dataset": "coco"}))
    return root


@pytest.fixture
def tiny_nlvr2(tmp_path):
    """Data folder in NLVR2's official format: 24 sentences to train on, 12 in each of the other splits."""
    root, colours = tmp_path / "nlvr2", list(COLOURS)
    for split, folder, sets in (("train", "train/7", 6), ("dev", "dev", 3), ("test1", "test1", 3)):
        (root / "images" / folder).mkdir(parents=True)
        lines = []
        for number in range(sets):
            for pair in range(2):
                for image in range(2):
                    path = root / "images" / folder / f"{split}-{number}-{pair}-img{image}.png"
                    kind = "JPEG" if image else "PNG"  # as in the official download
                    Image.new("RGB", (32, 40), COLOURS[colours[(number + image * pair) % 3]]).save(path, kind)
                for sentence, text in enumerate(("it is this colour", f"this is {colours[number % 3]}")):
                    true = pair == 0 or (sentence == 1 and number % 2 == 0)
                    entry = {"sentence": text, "label": str(true), "identifier": f"{split}-{number}-{pair}-{sentence}"}
                    lines.append(json.dumps(entry | ({"directory": 7} if split == "train" else {})))
        (root / f"{split}.json").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def tiny_snli_ve(tmp_path):
    """Data folder in SNLI-VE's official format: 18 sentences to train on, 9 in each other split; one has no label."""
    root, labels = tmp_path / "snli_ve", ("entailment", "contradiction", "neutral")
    (root / "flickr30k-images").mkdir(parents=True)
    for split, start, images in (("train", 0, 6), ("dev", 100, 3), ("test", 200, 3)):
        entries = []
        for number in range(start, start + images):
            colour, other, _ = sorted(COLOURS, key=lambda name: (list(COLOURS).index(name) - number) % 3)
            Image.new("RGB", (40, 32), COLOURS[colour]).save(root / "flickr30k-images" / f"{number}.jpg")
            for label, text in zip(labels, (f"it is {colour}", f"it is {other}", "is it what"), strict=True):
                pair = {
                    "pairID": f"{number}.jpg#0r1{label[0]}",
                    "captionID": f"{number}.jpg#0",
                    "Flickr30K_ID": str(number),
                }
                entries.append(pair | {"sentence1": "", "sentence2": text, "gold_label": label})
        undecided = entries[0] | {"pairID": f"{start}.jpg#4r1e", "gold_label": "-"}
        lines = [json.dumps(entry) for entry in (entries[0], undecided, *entries[1:])]
        (root / f"snli_ve_{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root
