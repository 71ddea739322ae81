"""From photographs to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from transformers import DPTForDepthEstimation
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from torchdpt import DPTConfig, DPTModel, FileResult, ImageProcessor, Prediction, predict_files

CONFIG = DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    taps=(0, 1, 2, 3),
    channels=(8, 8, 16, 16),
    features=16,
)
RNG = np.random.default_rng(0)


@pytest.fixture
def model() -> DPTModel:
    torch.manual_seed(0)
    model = DPTModel(CONFIG)
    with torch.no_grad():  # maps that vary, above zero
        for parameter in model.head.parameters():
            parameter.mul_(3)
        model.head.conv3.bias.fill_(3)
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
    image = skimage.data.coffee()[:, :400]  # 400 x 400: transformers' plain ViT takes squares only
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


def test_flipped_arrays(model: DPTModel) -> None:
    image = photograph(40, 60)
    for flipped in (image[:, ::-1], image[::-1], image[..., ::-1]):  # negative strides
        assert np.array_equal(model.predict(flipped).depth, model.predict(flipped.copy()).depth)


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
