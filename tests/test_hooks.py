"""Neurons made from models: the right unit, useful messages, and a caller's model that stays as it was."""

import copy

import pytest
import torch
from analytic import normal
from torch import nn

from isoresponse.hooks import evaluating, forward_of, units
from isoresponse.neuron import Neuron


class Foreign(nn.Module):
    """A model as users have them: nested, with dropout, batch norm, in-place ReLU, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleDict({"one": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5))})
        self.spare = nn.Linear(3, 3)
        self.head = nn.Linear(4 * 2 * 2, 5)
        self.head_runs = 0

    def forward(self, x):
        x = self.blocks["one"](self.stem(x))
        self.head_runs += 1
        return self.head(x.flatten(1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(self.shared(x))


SHAPE = (2, 6, 6)
LAYERS = [None, "stem.0", "stem.1", "blocks.one.0", "blocks.one", "head"]


def unit_of(layer):
    return 2 if layer in (None, "head") else (1, 0, 1)


@pytest.fixture
def foreign(generator):
    model = Foreign().double()
    for parameter in model.parameters():
        parameter.data = normal(*parameter.shape, generator=generator)
    model.train()
    model.stem.eval()  # mixed modes, as when fine-tuning
    model.head.weight.requires_grad_(False)
    return model


@pytest.fixture
def images(generator):
    return normal(3, *SHAPE, generator=generator)


def snapshot(model):
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "asked": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_the_callers_model_stays_as_it_was(foreign, images, layer):
    foreign.head.bias.grad = torch.ones_like(foreign.head.bias)
    before, weights = snapshot(foreign), copy.deepcopy(foreign.state_dict())
    random_state = torch.get_rng_state()
    neuron = Neuron.of(foreign, unit_of(layer), layer=layer, shape=SHAPE)
    neuron.value(images)
    neuron.value_and_grad(images)
    neuron.hvp(images, images)
    units(foreign, SHAPE)
    after = snapshot(foreign)
    torch.testing.assert_close(after.pop("grads"), before.pop("grads"))
    assert after == before
    torch.testing.assert_close(foreign.state_dict(), weights, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not images.requires_grad


def test_a_failing_forward_pass_leaves_no_hook_and_restores_the_mode(foreign):
    before = snapshot(foreign)
    neuron = Neuron.of(foreign, unit_of("stem.0"), layer="stem.0", shape=SHAPE)
    with pytest.raises(RuntimeError):
        neuron.value(torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    assert snapshot(foreign) == before


def test_evaluating_restores_each_submodules_own_mode_after_an_error(foreign):
    before = [m.training for m in foreign.modules()]

    def fail():
        with evaluating(foreign):
            assert not any(m.training for m in foreign.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in foreign.modules()] == before


@pytest.mark.parametrize("layer", LAYERS)
def test_a_unit_is_the_layers_output_in_eval_mode_before_anything_changes_it_in_place(foreign, images, layer):
    told = Neuron.of(foreign, unit_of(layer), layer=layer, shape=SHAPE).value(images)
    foreign.eval()
    for module in foreign.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    seen = []
    handle = (foreign.get_submodule(layer) if layer else foreign).register_forward_hook(lambda m, i, o: seen.append(o))
    foreign(images)
    handle.remove()
    torch.testing.assert_close(told, seen[0][(slice(None), *torch.atleast_1d(torch.tensor(unit_of(layer))).tolist())])


def test_the_forward_pass_stops_at_the_layer(foreign, images):
    neuron = Neuron.of(foreign, (0, 0, 0), layer="stem.0", shape=SHAPE)
    foreign.head_runs = 0
    neuron.value_and_grad(images)
    assert foreign.head_runs == 0


def test_a_users_own_hook_still_runs_and_stays(foreign, images):
    seen = []
    foreign.stem[0].register_forward_hook(lambda *_: seen.append(None))
    neuron = Neuron.of(foreign, (0, 0, 0), layer="stem.0", shape=SHAPE)
    seen.clear()
    neuron.value(images)
    assert len(seen) == len(foreign.stem[0]._forward_hooks) == 1


def test_units_lists_every_layer_that_ran_and_any_index_in_it_is_a_unit(foreign):
    listed = dict(units(foreign, SHAPE))
    assert listed["stem.0"] == (3, 4, 4)
    assert listed["blocks.one"] == (4, 2, 2)
    assert listed[""] == (5,)
    assert "spare" not in listed
    for name, shape in listed.items():
        Neuron.of(foreign, tuple(s - 1 for s in shape), layer=name, shape=SHAPE)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 4, 5)], ids=["1-D", "2-D", "3-D"])
def test_inputs_of_any_rank(generator, shape):
    model = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3)).double()
    x = normal(2, *shape, generator=generator)
    value, gradient = Neuron.of(model, 1, shape=shape).value_and_grad(x)
    torch.testing.assert_close(value, model(x)[:, 1].detach())
    torch.testing.assert_close(gradient, model[1].weight[1].detach().reshape(shape).expand(2, *shape))


@pytest.mark.parametrize(
    "out", [nn.Linear(3, 1), nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))], ids=["(case, 1)", "(case,)"]
)
def test_a_single_output_needs_no_unit(out):
    assert Neuron.of(out, shape=(3,)).value(torch.ones(4, 3)).shape == (4,)


def test_a_unit_may_be_a_callable_on_the_whole_output(images, foreign):
    def contrast(scores):
        return scores[:, 0] - scores[:, 1:].amax(1)

    neuron = Neuron.of(foreign, contrast, shape=SHAPE)
    foreign.eval()
    torch.testing.assert_close(neuron.value(images), contrast(foreign(images)).detach())
    assert neuron.name == "output[contrast]"


@pytest.mark.parametrize(
    ("unit", "layer", "name"),
    [(2, None, "output[2]"), ((1, 0, 1), "stem.0", "stem.0[1, 0, 1]"), (-1, "head", "head[-1]")],
)
def test_the_default_name_says_layer_and_unit(foreign, unit, layer, name):
    assert Neuron.of(foreign, unit, layer=layer, shape=SHAPE).name == name
    assert Neuron.of(foreign, unit, layer=layer, shape=SHAPE, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("unit", "layer", "message"),
    [
        (0, "stm.0", r"no layer 'stm.0' in Foreign. Did you mean 'stem.0'"),
        (0, "qqqqqqqq", r"no layer 'qqqqqqqq' in Foreign. Layers: stem, stem.0"),
        (0, "spare", r"layer 'spare' did not run in the forward pass"),
        (7, None, r"no unit 7 in the model: .* shape \(5,\).* 1 part.s. in the ranges 0..4. Did you mean unit=4\?"),
        (-9, None, r"no unit -9 .* Did you mean unit=0\?"),
        ((1, 2), None, r"no unit \(1, 2\) in the model.* Did you mean unit=1\?"),
        (3, "stem.0", r"no unit 3 in layer 'stem.0': .* 3 part.s. in the ranges 0..2, 0..3, 0..3. .* unit=\(1, 2, 2\)"),
        ((3, 9, 1), "stem.0", r"Did you mean unit=\(2, 3, 1\)\?"),
        (None, None, r"the model has 5 units of shape \(5,\); say which with unit=, e.g. unit=2"),
        (None, "stem.0", r"layer 'stem.0' has 48 units of shape \(3, 4, 4\); .* unit=\(1, 2, 2\)"),
        (
            lambda out: out,
            None,
            r"the callable unit on the model must answer with one number per case, shape \(2,\), got shape",
        ),
        (lambda out: 3.0, None, r"must answer with one number per case, shape \(2,\), got float"),
    ],
)
def test_a_wrong_unit_or_layer_is_named_with_what_would_be_right(foreign, unit, layer, message):
    with pytest.raises(ValueError, match=message):
        Neuron.of(foreign, unit, layer=layer, shape=SHAPE)


def test_a_layer_that_runs_twice_is_ambiguous():
    with pytest.raises(
        ValueError, match=r"layer 'shared' runs 2 times in one forward pass, so its output is ambiguous"
    ):
        Neuron.of(Twice(), 0, layer="shared", shape=(4,))


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Linear(4, 2), (3,), r"the model does not run on inputs of shape \(case, 3\): mat1 and mat2"),
        (nn.LSTM(4, 2), (5, 4), "the model must answer with one tensor, got tuple"),
        (
            nn.Sequential(nn.Flatten(0), nn.Linear(8, 3)),
            (4,),
            r"must keep the case axis first: two inputs gave .*\(3,\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_told_why(module, shape, message):
    with pytest.raises(ValueError, match=message):
        Neuron.of(module, 0, shape=shape)


def test_a_function_is_not_a_module(unchecked):
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got function; .* Neuron\(response=function"):
        unchecked(forward_of)(lambda x: x, None)


@pytest.mark.parametrize("layer", [None, "0"])
def test_another_dtype_than_the_models_is_named_with_the_cure(layer):
    neuron = Neuron.of(nn.Sequential(nn.Linear(3, 1)), 0, layer=layer, shape=(3,))
    with pytest.raises(
        ValueError, match=r"inputs are torch.float64 on cpu but .* torch.float32 .* x.to\(torch.float32\)"
    ):
        neuron.value(torch.zeros(2, 3, dtype=torch.float64))


def test_a_model_that_changes_the_dtype_is_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x).double()

    with pytest.raises(
        ValueError, match=r"answers in torch\.float64 to inputs in torch\.float32; let it keep the dtype"
    ):
        Neuron.of(Doubled(4, 3), unit=0, shape=(4,))
