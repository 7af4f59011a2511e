"""What holds for every test: no network, the same examples in every run, kernels without a GPU interpreted."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background; what a test starts must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing may be downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():  # before transformers imports Triton: the kernels run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("thorough", max_examples=500, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items):
    """Skips tests marked ``gpu`` where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


ANSWERS = ("blue", "green", "red", "yes", "no")


@pytest.fixture(scope="session")
def tiny_vilt(tmp_path_factory):
    """Folder of a random ViLT of 12 thin layers for 32-pixel images (4 x 4 patches), with its processor."""
    from transformers import BertTokenizer, ViltConfig, ViltForQuestionAnswering, ViltImageProcessorPil, ViltProcessor

    folder = tmp_path_factory.mktemp("tiny-vilt")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "colour", "is", "this", "it", "?", *ANSWERS]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    config = ViltConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=12,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        image_size=32,
        patch_size=8,
        initializer_range=0.2,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: index for index, answer in enumerate(ANSWERS)},
    )
    torch.manual_seed(0)
    ViltForQuestionAnswering(config).save_pretrained(folder)
    images = ViltImageProcessorPil(
        size={"shortest_edge": 32}, size_divisor=8, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    ViltProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_vqa(tmp_path):
    """Data folder in the official VQAv2 format: 24 training and 12 validation questions on plain pictures."""
    import json

    from PIL import Image

    colours = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
    root = tmp_path / "vqa"
    for folder, images in (("train2014", 12), ("val2014", 6)):
        (root / folder).mkdir(parents=True)
        questions, annotations = [], []
        for image in range(images):
            name, rgb = list(colours.items())[image % 3]
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


@pytest.fixture(scope="session")
def tiny_meter(tiny_vilt, tmp_path_factory):
    """Folder of a random METER of 3 pairs for 32-pixel images (4 x 4 patches), with ViLT's words and answers."""
    from transformers import AutoTokenizer

    from pumer.models.meter import MeterConfig, MeterForQuestionAnswering, MeterImageProcessorPil, MeterProcessor

    folder = tmp_path_factory.mktemp("tiny-meter")
    tokenizer = AutoTokenizer.from_pretrained(tiny_vilt)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}
    text = {"num_hidden_layers": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 13, "pad_token_id": 0}
    vision = {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    config = MeterConfig(
        text_config=shape | text,
        vision_config=shape | vision,
        num_cross_modal_pairs=3,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: index for index, answer in enumerate(ANSWERS)},
        **shape,
    )
    torch.manual_seed(0)
    MeterForQuestionAnswering(config).save_pretrained(folder)
    images = MeterImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    MeterProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_flickr(tmp_path):
    """Data folder in the format of Karpathy's Flickr30k: 6, 4 and 8 images of one colour with five captions each."""
    import json

    from PIL import Image

    colours = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}
    root = tmp_path / "flickr30k"
    (root / "flickr30k-images").mkdir(parents=True)
    images = []
    for split, count in (("train", 6), ("val", 4), ("test", 8)):
        for _ in range(count):
            number = len(images)
            name, rgb = list(colours.items())[number % 3]
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
    import json

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


PICTURES = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


@pytest.fixture
def tiny_nlvr2(tmp_path):
    """Data folder in NLVR2's official format: 24 sentences to train on, 12 in each of the other splits."""
    import json

    from PIL import Image

    root, colours = tmp_path / "nlvr2", list(PICTURES)
    for split, folder, sets in (("train", "train/7", 6), ("dev", "dev", 3), ("test1", "test1", 3)):
        (root / "images" / folder).mkdir(parents=True)
        lines = []
        for number in range(sets):
            for pair in range(2):
                for image in range(2):
                    path = root / "images" / folder / f"{split}-{number}-{pair}-img{image}.png"
                    kind = "JPEG" if image else "PNG"  # as in the official download
                    Image.new("RGB", (32, 40), PICTURES[colours[(number + image * pair) % 3]]).save(path, kind)
                for sentence, text in enumerate(("it is this colour", f"this is {colours[number % 3]}")):
                    true = pair == 0 or (sentence == 1 and number % 2 == 0)
                    entry = {"sentence": text, "label": str(true), "identifier": f"{split}-{number}-{pair}-{sentence}"}
                    lines.append(json.dumps(entry | ({"directory": 7} if split == "train" else {})))
        (root / f"{split}.json").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def tiny_snli_ve(tmp_path):
    """Data folder in SNLI-VE's official format: 18 sentences to train on, 9 in each other split; one has no label."""
    import json

    from PIL import Image

    root, labels = tmp_path / "snli_ve", ("entailment", "contradiction", "neutral")
    (root / "flickr30k-images").mkdir(parents=True)
    for split, start, images in (("train", 0, 6), ("dev", 100, 3), ("test", 200, 3)):
        entries = []
        for number in range(start, start + images):
            colour, other, _ = sorted(PICTURES, key=lambda name: (list(PICTURES).index(name) - number) % 3)
            Image.new("RGB", (40, 32), PICTURES[colour]).save(root / "flickr30k-images" / f"{number}.jpg")
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


@pytest.fixture
def training(tiny_vilt, tiny_vqa, tmp_path):
    """Settings of a training of six steps of four questions: one pass over the training questions."""
    from pumer.settings.train import OptimizerConfig, TrainConfig, TrainingData

    layers = {"layers": [2, 5, 8], "prune_ratio": 0.1, "merge_ratio": 0.3, "text_merge_ratio": 0.2}
    return TrainConfig(
        model=str(tiny_vilt),
        output=tmp_path / "out",
        data=TrainingData(tiny_vqa, min_answer_count=1),
        optimizer=OptimizerConfig(lr=1e-3),
        reduction={"method": "pumer", **layers},
        batch_size=4,
        max_steps=6,
        log_steps=1,
        report_to=(),
    )
