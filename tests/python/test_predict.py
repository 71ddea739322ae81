"""From photographs to predictions."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
import torch.nn.functional as F
from networks import VIT
from PIL import Image
from transformers import DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from torchdpt import DPTModel, DPTOutput, FileResult, ImageProcessor, Prediction, predict_files
from torchdpt.classes import ADE20K, Classes
from torchdpt.predict import Network, resize_labels

CONFIG = VIT.replace(head_features=32)  # as in transformers

RNG = np.random.default_rng(0)


@pytest.fixture
def model() -> DPTModel:
    torch.manual_seed(0)
    model = DPTModel(CONFIG)
    with torch.no_grad():  # maps that vary, above zero
        for parameter in model.head.parameters():
            parameter.mul_(3)
        model.head.depth.conv3.bias.fill_(3)
    return model.eval()


def photograph(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- parity ---


@pytest.mark.parametrize("settings", [{"resample": 2}, {"resample": 3, "keep_aspect_ratio": True}])
def test_equals_processor_model_and_postprocessing_of_transformers(
    model: DPTModel, tmp_path: Path, settings: dict[str, object]
) -> None:
    peer_processor = DPTImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, ensure_multiple_of=32, **settings
    )
    model.save_pretrained(tmp_path, layout="transformers")
    peer_processor.save_pretrained(tmp_path)  # as published checkpoints have it
    peer = DPTForDepthEstimation.from_pretrained(tmp_path).eval()
    ours = DPTModel.from_pretrained(tmp_path)
    image = skimage.data.coffee()  # 400 x 600
    if settings.get("keep_aspect_ratio"):
        image = image[:, :400]  # transformers' plain ViT takes squares only
    with torch.no_grad():
        outputs = peer(**peer_processor(image, return_tensors="pt"))
    want = peer_processor.post_process_depth_estimation(outputs, [image.shape[:2]])[0]["predicted_depth"].numpy()
    got = ours.predict(image).depth
    assert np.ptp(want) > 0.01 * want.max()
    assert np.abs(got - want).max() <= 1e-3 * np.ptp(want)


def test_equals_the_steps_of_isl_org(model: DPTModel) -> None:
    import cv2

    image = photograph(100, 160)
    x = cv2.resize(image / 255.0, (96, 64), interpolation=cv2.INTER_CUBIC)
    x = torch.from_numpy((x - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        want = torch.nn.functional.interpolate(model(x).depth[None], (100, 160), mode="bicubic", align_corners=False)
    prediction = model.predict(image)
    assert np.abs(prediction.depth - want[0, 0].numpy()).max() <= 1e-4 * np.ptp(want.numpy())


# --- what comes back ---


def test_prediction_says_what_it_is(model: DPTModel) -> None:
    image = photograph(50, 80)
    prediction = model.predict(image)
    assert isinstance(prediction, Prediction)
    assert prediction.depth.shape == (50, 80)
    assert prediction.depth.dtype == np.float32
    assert prediction.depth.flags.c_contiguous
    assert (prediction.kind, prediction.unit) == ("relative_inverse_depth", None)
    assert prediction.valid.all()
    assert np.array_equal(prediction.image, image)
    assert model.predict(image, size=(10, 20)).depth.shape == (10, 20)


def test_sources_of_one_photograph_agree(model: DPTModel, tmp_path: Path) -> None:
    image = photograph(50, 80)
    Image.fromarray(image).save(tmp_path / "image.png")
    sources = [
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
        (tmp_path / "image.png").read_bytes(),
        Image.open(tmp_path / "image.png"),
        torch.from_numpy(image).permute(2, 0, 1),
    ]
    want = model.predict(image).depth
    assert all(np.array_equal(model.predict(source).depth, want) for source in sources)


def test_list_keeps_its_order_and_equals_one_by_one(model: DPTModel) -> None:
    images = [
        photograph(height, width) for height, width in [(50, 80), (80, 50), (50, 80), (64, 64), (40, 64), (80, 50)]
    ]
    predictions = model.predict(images, batch_size=2)
    assert [p.depth.shape for p in predictions] == [image.shape[:2] for image in images]
    for prediction, image in zip(predictions, images, strict=True):
        want = model.predict(image).depth
        assert np.abs(prediction.depth - want).max() <= 1e-5 * want.max()  # float32, in a batch
    assert model.predict([]) == []


def test_options_reach_the_network(model: DPTModel) -> None:
    sizes = []
    model.encoder.register_forward_pre_hook(lambda _module, args: sizes.append(tuple(args[0].shape[2:])))
    image = photograph(100, 160)
    model.predict(image)
    model.predict(image, input_size=192)
    model.predict(image, input_size=(64, 128), resize="exact")
    model.predict(image, resize="upper_bound")
    assert sizes == [(64, 96), (128, 192), (64, 128), (32, 64)]


def test_other_sizes_are_multiples_of_the_patch(model: DPTModel) -> None:
    model.processor = ImageProcessor(64, "exact", 1, "bilinear_antialiased")  # as Intel/dpt-large
    sizes = []
    model.encoder.register_forward_pre_hook(lambda _module, args: sizes.append(tuple(args[0].shape[2:])))
    model.predict(photograph(100, 160))
    model.predict(photograph(100, 160), input_size=100)
    model.predict(photograph(100, 160), resize="minimal")
    assert sizes == [(64, 64), (96, 96), (64, 96)]


def test_modes_are_restored(model: DPTModel) -> None:
    model.train()
    model.fusion.eval()
    modes = [module.training for module in model.modules()]
    model.predict(photograph(50, 80))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="a GIF"):
        model.predict([photograph(50, 80), b"GIF89a"])
    assert [module.training for module in model.modules()] == modes


def test_modes_are_restored_after_several_threads(model: DPTModel) -> None:
    model.train()
    model.fusion.eval()
    modes = [module.training for module in model.modules()]
    entered, leave = threading.Barrier(2), threading.Event()

    def first() -> None:
        with model._eval_mode():
            entered.wait()
            leave.wait()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with model._eval_mode():
        leave.set()
        thread.join()
        assert not any(module.training for module in model.modules())  # though the first one is through
    assert [module.training for module in model.modules()] == modes
    copy.deepcopy(model)
    pickle.dumps(model)


def test_numpy_integers_are_sizes_and_bools_are_not(model: DPTModel) -> None:
    image, two, side = photograph(50, 80), np.int64(2), np.int32(64)
    got = model.predict([image], size=(two, side), input_size=side, batch_size=two)
    assert got[0].depth.shape == (2, 64)
    assert model.predict(image, input_size=(side, side)).depth.shape == (50, 80)
    for options in ({"size": (True, 64)}, {"input_size": True}, {"batch_size": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            model.predict(image, **options)


def test_huge_network_sizes_are_refused(model: DPTModel) -> None:
    message = "more than 64 times its native 64 x 64; pass a smaller input_size"
    with pytest.raises(ValueError, match=f"would be 1000 x 1000 pixels, {message}"):
        model.predict(photograph(8, 8), input_size=1000)
    with pytest.raises(ValueError, match=message):
        model.predict(photograph(2, 400), resize="lower_bound")


def test_half_precision(model: DPTModel) -> None:
    image = photograph(50, 80)
    want = model.predict(image).depth
    got = model.to(torch.bfloat16).predict(image).depth
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= 0.05 * want.max()


def test_constant_image_and_one_pixel_give_a_result(model: DPTModel) -> None:
    for image in (np.zeros((40, 60, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)):
        prediction = model.predict(image)
        assert prediction.depth.shape == image.shape[:2]
        assert prediction.valid.all()


def test_processor_travels_with_the_checkpoint(model: DPTModel, tmp_path: Path) -> None:
    model.processor = ImageProcessor((64, 96), "exact", 16, "cubic_antialiased")
    model.save_pretrained(tmp_path)
    assert DPTModel.from_pretrained(tmp_path).processor == model.processor
    assert DPTModel.from_pretrained(tmp_path / "model.safetensors").processor == model.processor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (10,)}, r"size must be the output's \(height, width\) in pixels, got \(10,\)"),
        ({"size": (0, 4)}, "size must be"),
        ({"size": 200}, r"size must be the output's \(height, width\) in pixels, got 200"),
        ({"input_size": "192"}, r"input_size must be a side or \(height, width\) in pixels, got '192'"),
        ({"input_size": 0}, r"input_size must be a side or \(height, width\) in pixels, got 0"),
        ({"batch_size": "2"}, "batch_size must be an integer of at least 1, got '2'"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"resize": "squash"}, "resize must be one of minimal"),
        ({"input_size": -5}, "size must be"),
    ],
)
def test_bad_options_are_refused(model: DPTModel, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.predict(photograph(8, 8), **options)
    with pytest.raises(ValueError, match=message):
        predict_files(model, [], **options)  # at once, not at the first result


def test_bad_image_of_a_list_is_named(model: DPTModel) -> None:
    with pytest.raises(ValueError, match="a GIF") as error:
        model.predict([photograph(8, 8), b"GIF89a"])
    assert error.value.__notes__ == ["image 1 of the list"]
    with pytest.raises(ValueError, match="a GIF") as error:
        model.predict(b"GIF89a")
    assert not hasattr(error.value, "__notes__")


def test_flipped_arrays(model: DPTModel) -> None:
    image = photograph(40, 60)
    for flipped in (image[:, ::-1], image[::-1], image[..., ::-1]):  # negative strides
        assert np.array_equal(model.predict(flipped).depth, model.predict(flipped.copy()).depth)


# --- classes and metres ---


class Stub(Network):
    """Predicts what it is given, as far as the config of a real network has heads for it."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, output: DPTOutput, *, metric: bool = False, classes: Classes | None = None) -> None:
        self.config = CONFIG.replace(metric=metric)
        self.processor = ImageProcessor((64, 64), "exact")
        self.classes = classes
        self.output = output

    def _run(self, images: torch.Tensor) -> DPTOutput:
        assert images.shape[2:] == (64, 64)
        return self.output


def plain_argmax(logits: torch.Tensor, height: int, width: int) -> np.ndarray:
    full = F.interpolate(logits.float()[None], (height, width), mode="bicubic", align_corners=False)
    return full[0].argmax(0).numpy()


@pytest.mark.parametrize("size", [(50, 80), (64, 64), (20, 31), (129, 200), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_labels_are_the_plain_argmax(size: tuple[int, int], dtype: torch.dtype) -> None:
    logits = torch.randn(37, 24, 40).to(dtype)
    labels = resize_labels(logits, *size)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, plain_argmax(logits, *size))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_lowest_label_wins_ties(layout: str) -> None:
    logits = torch.randint(0, 3, (9, 12, 20)).float()
    logits[5] = logits[2]
    logits[:, :4] = 1.5
    if layout == "channels last":
        logits = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    labels = resize_labels(logits, 12, 20)
    assert np.array_equal(labels, logits.argmax(0).numpy())  # at the same size, the scores stay as they are
    assert not (labels == 5).any()
    assert not labels[:4].any()


def test_pixels_without_a_number_have_no_label() -> None:
    logits = torch.zeros(3, 8, 8)
    logits[1, 2, 5] = torch.nan
    labels = resize_labels(logits, 8, 8)
    assert labels[2, 5] == 255
    assert not labels[5:].any()  # beyond the reach of bicubic interpolation


def test_only_one_class_is_at_full_size_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []

    def interpolate(x: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        counts.append(x.shape[0] * x.shape[1])
        return original(x, *args, **options)

    original = F.interpolate
    monkeypatch.setattr(F, "interpolate", interpolate)
    resize_labels(torch.randn(20, 8, 8), 30, 40)
    assert counts == [1] * 20


def test_segmentation_gives_labels_alone() -> None:
    logits = torch.randn(2, 150, 32, 32)
    images = [photograph(50, 80), photograph(40, 30)]
    predictions = Stub(DPTOutput(None, logits), classes=ADE20K).predict(images)
    for prediction, image, scores in zip(predictions, images, logits, strict=True):
        assert (prediction.depth, prediction.kind, prediction.unit) == (None, None, None)
        assert prediction.classes is ADE20K
        assert np.array_equal(prediction.labels, plain_argmax(scores, *image.shape[:2]))
        assert np.array_equal(prediction.image, image)
    (small,) = Stub(DPTOutput(None, logits[:1]), classes=ADE20K).predict(images[:1], size=(10, 20))
    assert small.labels.shape == (10, 20)


def test_joint_networks_give_both() -> None:
    output = DPTOutput(torch.rand(1, 64, 64), torch.randn(1, 5, 64, 64))
    (prediction,) = Stub(output, classes=Classes.numbered(5)).predict([photograph(50, 80)])
    assert prediction.depth.shape == prediction.labels.shape == (50, 80)
    assert prediction.kind == "relative_inverse_depth"


def test_metric_depth_is_resized_as_the_network_gives_it() -> None:
    metres = 1 + 9 * torch.rand(1, 64, 64)
    (prediction,) = Stub(DPTOutput(metres), metric=True).predict([photograph(50, 80)])
    want = F.interpolate(metres[None], (50, 80), mode="bicubic", align_corners=False)[0, 0].numpy()
    assert np.array_equal(prediction.depth, want)
    assert (prediction.kind, prediction.unit) == ("metric_depth", "m")


@pytest.mark.parametrize(("classes", "got"), [(None, "None"), (ADE20K, "150")])
def test_classes_of_another_network_are_refused(classes: Classes | None, got: str) -> None:
    stub = Stub(DPTOutput(None, torch.zeros(1, 5, 64, 64)), classes=classes)
    with pytest.raises(ValueError, match=rf"model.classes must name the 5 classes of the network, got {got}; Classes"):
        stub.predict([photograph(8, 8)])


# --- files ---


def test_one_path_is_no_list_of_paths(model: DPTModel) -> None:
    with pytest.raises(ValueError, match=r"paths must be a list of paths, got 'photo.jpg' alone"):
        predict_files(model, "photo.jpg")


def test_files_come_in_order_with_their_errors(model: DPTModel, tmp_path: Path) -> None:
    paths = []
    for i in range(23):
        path = tmp_path / f"{i}.png"
        if i % 7 == 3:
            path.write_bytes(b"broken")
        else:
            Image.fromarray(photograph(40 + i % 3, 60)).save(path)
        paths.append(path)
    paths.insert(5, tmp_path / "missing.png")
    results = list(predict_files(model, paths, batch_size=4))
    assert [result.path for result in results] == [str(path) for path in paths]
    for result in results:
        assert isinstance(result, FileResult)
        assert (result.prediction is None) == (result.error is not None)
    errors = {Path(result.path).name: type(result.error) for result in results if result.error}
    assert errors == {"3.png": ValueError, "10.png": ValueError, "17.png": ValueError, "missing.png": FileNotFoundError}
    good = results[-1]
    assert np.abs(good.prediction.depth - model.predict(paths[-1]).depth).max() <= 1e-5 * good.prediction.depth.max()


def test_failures_of_the_network_are_errors_of_their_files(model: DPTModel, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((40, 60, 3), 250 if i == 3 else 10, np.uint8)).save(path)

    def fail(_module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) > 2 or args[0].max() > 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.encoder.register_forward_pre_hook(fail)
    results = list(predict_files(model, paths, batch_size=4))
    assert [result.path for result in results] == list(map(str, paths))
    assert [type(result.error) for result in results] == [type(None)] * 3 + [torch.OutOfMemoryError, type(None)]


def test_what_is_no_path_is_an_error_of_its_own(model: DPTModel, tmp_path: Path) -> None:
    Image.fromarray(photograph(40, 60)).save(tmp_path / "a.png")
    results = list(predict_files(model, [None, tmp_path / "a.png", photograph(4, 4), 3]))
    assert [result.prediction is None for result in results] == [True, False, True, True]
    assert str(results[0].error) == "not a path, but NoneType; predict takes other images"


def test_files_are_read_a_few_at_a_time(model: DPTModel, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(photograph(40, 60)).save(path)
    asked = []

    def endless():
        while True:
            asked.append(1)
            yield path

    results = predict_files(model, endless(), batch_size=3)
    assert next(results).prediction is not None
    assert len(asked) <= 6
    results.close()
