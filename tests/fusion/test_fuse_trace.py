"""What a trace may stand for: reads are recorded and compared at each call, and what leaves no trace is refused."""

import logging
import random
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.fusion import fuse
from engine.fusion.chains import savings
from engine.fusion.chains.speed import speed
from engine.fusion.tracing.tracer import Untraceable, trace
from tests.support.fuse_checks import HALF, UP, assert_same, calls, fused_pair, image, patterns, seeded
from tests.support.fuse_models import (
    Asserting,
    Doubled,
    conv,
    drawn,
    is_image,
    leaked,
    meanwhile,
    step_of,
    switched,
)

ACTIVE, CACHE, LOG = True, {}, logging.getLogger(__name__)
GLOBAL = nn.LeakyReLU(0.3)
SLOPES = (0.1, 0.2)


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.mode, self.sizes = conv(3, 3), 0.5, "elu", [1, 2]


class Dropping(One):
    """Asks whether it is in training."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.elu(self.conv(x)), self.drop, self.training)


def test_both_modes_are_fused_where_the_forward_asks() -> None:
    model = seeded(Dropping)
    report = fuse(model)
    assert patterns(report) == [("conv", "conv 3x3 + elu")] and len(report.replaced) == 1
    assert calls(model, image()) == calls(model.eval(), image()) == 1
    assert torch.equal(model(image()), model(image()))
    model.train()
    assert not torch.equal(model(image()), model(image()))


class OnlyInEvaluation(One):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.training else F.elu(self.conv(x))


def test_mode_decides_what_is_a_chain() -> None:
    model = seeded(OnlyInEvaluation).eval()
    fuse(model)
    assert calls(model, image()) == 1 and calls(model.train(), image()) == 0


class AsksAGlobal(One):
    def forward(self, x: Tensor) -> Tensor:
        LOG.debug("a call")
        return F.leaky_relu(self.conv(x), SLOPES[0]) if ACTIVE else x


def test_globals_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = seeded(AsksAGlobal)
    fuse(model)
    assert calls(model, image()) == 1
    monkeypatch.setitem(globals(), "ACTIVE", False)
    assert calls(model, image()) == 0 and torch.equal(model(image()), image())


class ByHelper(One):
    """Reads attributes in a method and in a function of another file."""

    def kind(self) -> str:
        return self.mode

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = F.elu(y) if self.kind() == "elu" else y
        return y[:, :, :: self.sizes[1], :: step_of(self)] + 1


def test_reads_by_methods_and_other_files_are_compared() -> None:
    model, plain, report = fused_pair(ByHelper)
    assert patterns(report) == [("conv", f"conv 3x3 + elu + {HALF}")]
    for change in ({"mode": "none"}, {"mode": "elu", "sizes": [1, 1]}, {"sizes": [1, 2], "stepped": 4}):
        for name, value in change.items():
            setattr(model, name, value)
            setattr(plain, name, value)
        assert calls(model, image()) == 0 and torch.equal(model(image()), plain(image()))


class OfAnother(One):
    def __init__(self) -> None:
        super().__init__()
        self.others = (nn.Identity(),)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x))


class Caching(One):
    def forward(self, x: Tensor) -> Tensor:
        CACHE["last"] = x
        return F.elu(self.conv(x))


class Drawing(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) * drawn()


class Trying(One):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return F.elu(self.conv(x))
        except RuntimeError:
            return x


class Printing(One):
    def forward(self, x: Tensor) -> Tensor:
        print("called")
        return F.elu(self.conv(x))


class Identities(One):
    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_nothing(x)
        return F.elu(self.conv(x)) if y is x else x

    def drop_nothing(self, x: Tensor) -> Tensor:
        return x


class AskingTheType(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if type(x) is Tensor else x


class AskingElsewhere(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if is_image(x) else x


class AskingTheGradientMode(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x)) if torch.is_grad_enabled() else x


class Differentiating(One):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(F.elu(self.conv(x)))


class Switching(One):
    def forward(self, x: Tensor) -> Tensor:
        before = switched(False)
        y = F.elu(self.conv(x))
        switched(before)
        return y


class Looping(One):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.elu(self.conv(row[None])) for row in x])


STATE = "its forward makes tensors or changes the module's state"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Caching, "its forward uses CACHE"),
        (Drawing, "its forward draws random numbers"),
        (Trying, "its forward has a try block"),
        (Printing, "its forward uses print"),
        (Identities, "its forward compares identities"),
        (AskingTheType, "its forward uses type"),
        (AskingElsewhere, "its forward asks what an input is"),
        (AskingTheGradientMode, "its forward uses is_grad_enabled"),
        (Differentiating, "its forward asks what an input is"),
        (Switching, "its forward switches gradients or autocast"),
        (Looping, "its forward iterates over a tensor or its sizes"),
    ],
)
def test_what_leaves_no_trace_is_refused(kind: type, reason: str) -> None:
    model, state = seeded(kind), random.getstate()
    assert fuse(model).skipped == [("", "forward", reason)]
    assert type(model) is kind and random.getstate() == state and torch.is_grad_enabled()


class AskingAGlobalModule(One):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), GLOBAL.negative_slope)


class AskingAGlobalModuleElsewhere(One):
    def forward(self, x: Tensor) -> Tensor:
        return leaked(self.conv(x))


class AskingADefault(One):
    def forward(self, x: Tensor, act: nn.Module = GLOBAL) -> Tensor:
        return F.leaky_relu(self.conv(x), act.negative_slope)


class AskingAnUnregistered(One):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["act"] = nn.LeakyReLU(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), self.act.negative_slope)


@pytest.mark.parametrize(
    "kind", [AskingAGlobalModule, AskingAGlobalModuleElsewhere, AskingADefault, AskingAnUnregistered]
)
def test_modules_that_are_no_children_are_refused(kind: type) -> None:
    model = seeded(kind)
    reason = "its forward uses a LeakyReLU that is none of its children"
    assert fuse(model).skipped == [("", "forward", reason)]
    assert type(model) is kind and type(GLOBAL) is nn.LeakyReLU


class Pausing(One):
    def forward(self, x: Tensor) -> Tensor:
        meanwhile()
        return F.elu(self.conv(x)) if self.mode == "elu" else x


def test_a_trace_concerns_its_own_modules_and_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, unrelated, seen = seeded(Pausing), seeded(Dropping).eval(), {}
    weight, wanted = model.conv.weight, (model.conv(image()), unrelated(image()))

    def in_another_thread() -> None:
        seen["sizes"], seen["weight"] = model.sizes, model.conv.weight
        seen["outputs"] = model.conv(image()), unrelated(image())

    def during_the_trace() -> None:
        seen["class"], seen["mode"] = type(unrelated), unrelated.mode
        seen["hooked"] = "__getattribute__" in vars(nn.Module)
        thread = threading.Thread(target=in_another_thread)
        thread.start()
        thread.join()

    monkeypatch.setattr("tests.support.fuse_models.MEANWHILE", [during_the_trace])
    traced = trace(model, None)
    assert traced.values == [("", "mode", "elu")]
    assert seen["class"] is Dropping and seen["mode"] == "elu" and not seen["hooked"]
    assert seen["sizes"] == [1, 2] and seen["weight"] is weight
    assert all(map(torch.equal, seen["outputs"], wanted))
    assert type(model) is Pausing and type(model.conv) is nn.Conv2d


def test_attributes_that_are_not_read_do_not_matter() -> None:
    _, _, report = fused_pair(OfAnother)
    assert len(report.replaced) == 1 and report.refused == []


def test_proxies_answer_as_tensors_do() -> None:
    _, _, report = fused_pair(Asserting)
    assert patterns(report) == [("conv", "conv 3x3 + elu")]


def test_trace_ends_where_the_class_was() -> None:
    model = seeded(Switching)
    with pytest.raises(Untraceable):
        trace(model, None)
    assert type(model) is Switching


class Branch(nn.Sequential):
    """A Sequential by another name, as MONAI writes its blocks."""


def test_derived_sequentials_are_looked_into() -> None:
    _, _, report = fused_pair(lambda: Branch(nn.Upsample(scale_factor=2), Branch(conv(3, 4), Branch(nn.ReLU()))))
    assert patterns(report) == [("1.0", f"{UP} + relu")]


def test_normalisation_between_is_told() -> None:
    layers = [
        nn.Upsample(scale_factor=2),
        conv(3, 64),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        conv(64, 64),
        nn.GroupNorm(4, 64),
    ]
    model, plain, report = fused_pair(lambda: nn.Sequential(*layers, nn.GELU(), conv(64, 3)))
    assert [entry.reason for entry in report.replaced] == [
        "9 -> 4 products a value; folded in evaluation",
        "9 -> 2.25 products a value; GroupNorm after it stays",
        "one pass, as many products",
    ]
    assert report.skipped == []
    assert_same(model, plain, image())


def test_small_maps_gain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "speed", speed)
    model = seeded(lambda: nn.Sequential(conv(64, 64), nn.BatchNorm2d(64), conv(64, 64), nn.ReLU()))
    small = fuse(model, example_inputs=image(1, 64, 6, 6))
    why = "nothing to gain: slower on maps of this size"
    assert small.skipped == [("0", "conv 3x3 + BatchNorm2d", why), ("2", "conv 3x3 + relu", why)]
    assert str(small).endswith("nothing is gained: the model runs as it did") and type(model) is nn.Sequential
    large = patterns(fuse(model, example_inputs=image(4, 64, 32, 32)))
    assert large == [("0", "conv 3x3 + BatchNorm2d"), ("2", "conv 3x3 + relu")]
    model.eval()
    assert (calls(model, image(1, 64, 6, 6)), calls(model, image(4, 64, 32, 32))) == (0, 2)
