"""What torchdpt.losses refuses, and that it says what was wanted, what came and what to do."""

import re

import pytest
import torch

from torchdpt import losses

MAPS = ["scale_and_shift_invariant", "gradient_matching", "silog", "align"]


def call(function, prediction, target, mask, **options):
    if function == "align":
        options = {"mode": "robust"} | options
    return getattr(losses, function)(prediction, target, mask, **options)


def maps(device="cpu", shape=(3, 6, 5)):
    prediction, target = torch.rand(shape, device=device) + 1, torch.rand(shape, device=device) + 1
    return prediction, target, torch.ones(shape, dtype=torch.bool, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
@pytest.mark.parametrize("function", MAPS)
def test_mask_is_bool(device, function, dtype):
    prediction, target, mask = maps(device)
    with pytest.raises(ValueError, match=f"{function}: .*mask.*bool.*mask > 0"):
        call(function, prediction, target, mask.to(dtype))


@pytest.mark.parametrize("function", MAPS[:3])
def test_no_gradient_goes_to_the_target(device, function):
    prediction, target, mask = maps(device)
    for grad in (False, True):
        with pytest.raises(ValueError, match=f"{function}: .*target.*detach"):
            call(function, prediction.requires_grad_(grad), target.requires_grad_(), mask)


@pytest.mark.parametrize("shape", [(6, 5), (3, 1, 6, 5)])
@pytest.mark.parametrize("function", MAPS)
def test_maps_have_three_dimensions(device, function, shape):
    got = re.escape(str(list(shape)))
    with pytest.raises(ValueError, match=rf"{function}: .*\[B, H, W\].*{got}"):
        call(function, *maps(device, shape))


@pytest.mark.parametrize("function", MAPS)
def test_maps_have_one_size(device, function):
    prediction, target, mask = maps(device)
    for shape in ((3, 6, 4), (1, 6, 5), (6, 5), (3, 5, 6)):
        got = re.escape(str(list(shape)))
        _, other, other_mask = maps(device, shape)
        with pytest.raises(ValueError, match=rf"{function}: .*target.*{got}"):
            call(function, prediction, other, mask)
        with pytest.raises(ValueError, match=rf"{function}: .*mask.*{got}"):
            call(function, prediction, target, other_mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.complex64])
@pytest.mark.parametrize("function", MAPS)
def test_maps_are_floating_point(device, function, dtype):
    prediction, target, mask = maps(device)
    for name, arguments in (("prediction", (prediction.to(dtype), target)), ("target", (prediction, target.to(dtype)))):
        with pytest.raises(ValueError, match=f"{function}: .*{name}.*float32"):
            call(function, *arguments, mask)


@pytest.mark.cuda
@pytest.mark.parametrize("function", MAPS)
def test_maps_are_on_one_device(function):
    prediction, target, mask = maps("cuda")
    for arguments in (
        (prediction.cpu(), target, mask),
        (prediction, target.cpu(), mask),
        (prediction, target, mask.cpu()),
    ):
        with pytest.raises(ValueError, match=f"{function}: .*(cuda.*cpu|cpu.*cuda)"):
            call(function, *arguments)


@pytest.mark.parametrize(
    ("function", "option", "choices"),
    [
        ("scale_and_shift_invariant", "alignment", ("robust", "least_squares")),
        ("scale_and_shift_invariant", "data", ("trimmed", "mae", "mse")),
        ("scale_and_shift_invariant", "reduction", ("image", "batch")),
        ("scale_and_shift_invariant", "definition", ("recommended", "paper", "published")),
        ("gradient_matching", "reduction", ("image", "batch")),
        ("gradient_matching", "definition", ("recommended", "paper", "published")),
        ("silog", "variant", ("eigen", "bts", "adabins", "depth_anything")),
        ("silog", "reduction", ("image", "batch")),
        ("align", "mode", ("robust", "least_squares")),
    ],
)
def test_unknown_words_are_told_the_choices(function, option, choices):
    for word in ("medium", "", choices[0].upper()):
        with pytest.raises(ValueError, match=f"{option}.*{'.*'.join(choices)}") as error:
            call(function, *maps(), **{option: word})
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("option", "values", "wanted"),
    [
        ("trim", (-0.01, 1.01, float("nan")), "0.*1"),
        ("alpha", (-0.01, float("nan")), "0"),
        ("scales", (-1, 17), "0.*16"),
    ],
)
def test_numbers_out_of_range(option, values, wanted):
    for value in values:
        with pytest.raises(ValueError, match=f"{option}.*{wanted}.*{re.escape(f'{value:.3g}')}"):
            losses.scale_and_shift_invariant(*maps(), **{option: value})
        if option == "scales":
            with pytest.raises(ValueError, match=f"scales.*0.*16.*{value}"):
                losses.gradient_matching(*maps(), scales=value)


def test_options_are_passed_by_name():
    for function in MAPS:
        with pytest.raises(TypeError):
            getattr(losses, function)(*maps(), "robust")


def class_maps(device="cpu"):
    return torch.randn(2, 4, 6, 5, device=device), torch.randint(0, 4, (2, 6, 5), device=device)


def test_segmentation_refuses_other_sizes(device):
    logits, labels = class_maps(device)
    for one, other, message in (
        (logits[0], labels, r"logits.*\[B, K, H, W\].*\[4, 6, 5\]"),
        (logits, labels[0], r"labels.*\[6, 5\]"),
        (logits, labels[:, None], r"labels.*\[2, 1, 6, 5\]"),
        (logits[:, :, :3], labels, r"logits.*\[2, 4, 3, 5\]"),
        (logits[:1], labels, r"logits.*\[1, 4, 6, 5\]"),
    ):
        with pytest.raises(ValueError, match="(?s)segmentation: .*" + message):
            losses.segmentation(one, other)
    for auxiliary in (logits[0], logits[:1], logits[:, :3]):
        got = re.escape(str(list(auxiliary.shape)))
        with pytest.raises(ValueError, match=rf"segmentation: .*auxiliary_logits.*{got}"):
            losses.segmentation(logits, labels, auxiliary)


@pytest.mark.parametrize("function", [losses.scale_and_shift_invariant, losses.gradient_matching])
def test_transforms_of_torch_func_are_refused(device, function):
    prediction, target = torch.rand(2, 3, 6, 5, device=device)
    mask = torch.ones_like(target, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"transforms of torch.func .* use loss.backward"):
        torch.func.grad(lambda x: function(x, target, mask).loss)(prediction)


def test_segmentation_refuses_other_types(device):
    logits, labels = class_maps(device)
    for dtype in (torch.int32, torch.uint8, torch.float32):
        with pytest.raises(ValueError, match=r"segmentation: .*labels.*int64"):
            losses.segmentation(logits, labels.to(dtype))
    with pytest.raises(ValueError, match=r"segmentation: .*logits.*float32"):
        losses.segmentation(logits.long(), labels)
