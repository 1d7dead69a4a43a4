"""Any attack, step by step: what it asks, where it turns, and that it does not notice being watched."""

from dataclasses import fields

import pytest
import torch
from analytic import FAILURES, dot, hollow, linear, names, normal, quadric, sphere, uniform
from torch import Tensor

from isoresponse.attacks import FoolboxAttack, from_foolbox
from isoresponse.crossing import Solution
from isoresponse.exciting import most_exciting_input
from isoresponse.loop import Status, status_tensor
from isoresponse.neuron import Box, Neuron
from isoresponse.solve import closest_point
from isoresponse.trace import trace_attack


def answer(neuron, x, point, steps):
    """What a home-made attack answers, counting one gradient per step."""
    distance = (point - x).flatten(1).norm(dim=1)
    counts = torch.full((len(x),), steps)
    done = status_tensor(Status.DONE, x)
    return Solution(point, neuron.value(point), distance, distance * torch.nan, done, counts, counts + 1)


def ascent(steps=5, length=0.3, sign=1.0):
    """An attack: steps of fixed length along the gradient (or against it), clipped to the box."""

    def attack(neuron, x, level):
        point = x
        for _ in range(steps):
            gradient = neuron.value_and_grad(point)[1]
            size = gradient.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
            point = neuron.box.clip(point + sign * length * gradient / size)
        return answer(neuron, x, point, steps)

    return attack


def random_walk(steps, seed=3):
    """An attack that asks for gradients and goes anywhere."""

    def attack(neuron, x, level):
        generator, point = torch.Generator().manual_seed(seed), x
        for _ in range(steps):
            neuron.value_and_grad(point)
            point = point + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return answer(neuron, x, point, steps)

    return attack


def tensors(result):
    return {f.name: v for f in fields(result) if isinstance(v := getattr(result, f.name), Tensor)}


def assert_same(a, b, **tolerances):
    assert tensors(a).keys() == tensors(b).keys()
    for name, value in tensors(a).items():
        torch.testing.assert_close(
            value, tensors(b)[name], equal_nan=True, msg=lambda m, n=name: f"{n}: {m}", **tolerances
        )


def assert_ones(value, sign=1.0):
    torch.testing.assert_close(value, sign * torch.ones_like(value), rtol=0, atol=1e-12)


# --- closed forms


def test_gradient_ascent_on_a_linear_neuron_goes_along_the_normal_at_every_step(generator):
    known = linear(generator=generator)
    trace = trace_attack(ascent(5, 0.3), known.neuron, known.x, known.level)
    for cosines in (trace.cosine, trace.cosine_in_box):
        assert cosines.shape == (len(known), 5)
        assert_ones(cosines)  # the last one leads to the answer
    assert_ones(trace.alignment[:, 1:])
    assert trace.alignment[:, 0].isnan().all()  # no perturbation yet
    torch.testing.assert_close(trace.distance, 0.3 * torch.arange(5.0, dtype=torch.float64).expand(len(known), 5))
    slope = known.neuron.value_and_grad(known.x)[1].norm(dim=1)
    torch.testing.assert_close(trace.response - trace.response[:, :1], slope[:, None] * trace.distance)


def test_gradient_descent_towards_a_level_above_goes_the_wrong_way(generator):
    known = linear(generator=generator)
    trace = trace_attack(ascent(4, sign=-1.0), known.neuron, known.x, known.level)
    assert_ones(trace.cosine, -1.0)
    assert_ones(trace.cosine_in_box, -1.0)
    assert not trace.across.any()


def test_the_normal_points_to_the_side_to_be_reached_whether_the_response_rises_or_falls(generator):
    known = linear(generator=generator)
    below = 2 * known.neuron.value(known.x) - known.level
    trace = trace_attack(ascent(4, sign=-1.0), known.neuron, known.x, below)
    assert_ones(trace.cosine)
    torch.testing.assert_close(trace.across, trace.response < below[:, None])


@pytest.mark.parametrize("make", [sphere, hollow], ids=["sphere", "hollow"])
def test_gradient_ascent_on_a_sphere_is_radial(generator, make):
    known = make(generator=generator)
    trace = trace_attack(ascent(3, 0.02), known.neuron, known.x, known.level)
    assert_ones(trace.cosine)
    assert_ones(trace.alignment[:, 1:])


def test_a_step_of_known_angle_has_its_cosine():
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    neuron = Neuron(lambda x: x @ w, (2,))
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0], [0.0, 2.0]], dtype=torch.float64)

    def attack(neuron, x, level):
        for corner in corners[:-1]:
            neuron.value_and_grad(x + corner)
        return answer(neuron, x, x + corners[-1], 3)

    trace = trace_attack(attack, neuron, torch.zeros(1, 2, dtype=torch.float64), 9.0, mei=torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(trace.cosine[0], torch.tensor([0.5**0.5, 0.0, -1.0], dtype=torch.float64))
    expected = torch.tensor([torch.nan, 0.5**0.5, 0.2**0.5], dtype=torch.float64)
    torch.testing.assert_close(trace.alignment[0], expected, equal_nan=True)
    expected = torch.tensor([torch.nan, 0.5**0.5, 0.8**0.5], dtype=torch.float64)
    torch.testing.assert_close(trace.mei_alignment[0], expected, equal_nan=True)


def test_a_random_walk_has_small_cosines(generator):
    known = linear(8, 900, generator=generator)
    trace = trace_attack(random_walk(20), known.neuron, known.x, known.level)
    assert trace.cosine.shape == (8, 20)
    assert trace.cosine.abs().median() < 2 / 30  # the spread of a random cosine is 1 / sqrt(900)
    torch.testing.assert_close(
        trace.cosine.square().mean(), torch.tensor(1 / 900, dtype=torch.float64), rtol=0.4, atol=0
    )


def test_a_projected_gradient_step_follows_the_normal_inside_the_box_only(generator):
    w = normal(12, generator=generator)
    neuron = Neuron(lambda x: x @ w, (12,), Box(0.0, 1.0))
    x = uniform(5, 12, generator=generator)
    trace = trace_attack(ascent(6, 0.4), neuron, x, 100.0)
    assert (trace.cosine[:, 1:] < 0.99).any()
    moving = ~trace.cosine_in_box.isnan()  # undefined where nothing can move any more
    assert moving[:, :2].all()
    assert_ones(trace.cosine_in_box[moving])
    assert_ones(trace.alignment_in_box[:, 1])
    backwards = trace_attack(ascent(3, 0.4, sign=-1.0), neuron, x, 100.0)
    assert_ones(backwards.cosine_in_box[:, :2], -1.0)


def test_an_element_that_leaves_a_bound_against_the_normal_counts():
    """Only what the bound holds back is forgiven, not a retreat from it."""
    neuron = Neuron(lambda x: x.sum(1), (2,), Box(0.0, 1.0))

    def attack(neuron, x, level):
        for point in ([0.0, 1.0], [1.0, 0.0]):
            neuron.value_and_grad(x.new_tensor([point]))
        return answer(neuron, x, x.new_tensor([[1.0, 0.0]]), 2)

    trace = trace_attack(attack, neuron, torch.tensor([[0.0, 1.0]], dtype=torch.float64), 3.0)
    assert trace.cosine_in_box[0, 0] == -1  # the first element is held at its bound, the second went back
    assert trace.cosine[0, 0].abs() < 1e-12


def test_the_trace_of_closest_point_on_a_linear_neuron_ends_at_the_answer(generator):
    known = linear(generator=generator)
    trace = trace_attack(closest_point, known.neuron, known.x, known.level, keep_points=True)
    last = trace.points[torch.arange(len(known)), trace.steps - 1]
    torch.testing.assert_close(last, known.point)
    assert torch.equal(last, trace.solution.point)
    assert_ones(trace.cosine[:, 0])
    assert trace.cosine[:, -1].isnan().all()  # no step leads from the answer to the answer
    assert (trace.steps == 2).all()


def test_the_perturbation_found_by_closest_point_is_along_the_normal(generator):
    known = quadric(generator=generator)
    trace = trace_attack(closest_point, known.neuron, known.x, known.level)
    best = (trace.distance - trace.solution.distance[:, None]).abs().nan_to_num(torch.inf).argmin(1)
    at = trace.alignment[torch.arange(len(known)), best]
    assert (at > 1 - 1e-6).all()


# --- counts and padding


def test_evaluations_are_counted_as_the_solver_counts_them(generator):
    known = quadric(generator=generator)
    trace = trace_attack(closest_point, known.neuron, known.x, known.level)
    assert torch.equal(trace.gradients, trace.solution.gradients)
    assert torch.equal(trace.forwards, trace.solution.forwards)
    assert (trace.steps <= trace.gradients).all()
    assert torch.equal(trace.status, trace.solution.status)


def test_behind_the_last_step_of_a_case_everything_is_nan(generator):
    known = quadric(12, generator=generator)
    trace = trace_attack(
        closest_point, known.neuron, known.x, known.level, mei=normal(6, generator=generator), keep_points=True
    )
    assert len(trace.steps.unique()) > 1
    padded = torch.arange(trace.response.shape[1]) >= trace.steps[:, None]
    assert trace.response.shape[1] == trace.steps.max()
    for name in ("response", "distance"):
        assert torch.equal(getattr(trace, name).isnan(), padded)
    assert torch.equal(trace.points.isnan().any(2), padded)
    for name in ("cosine", "cosine_in_box", "alignment", "alignment_in_box", "mei_alignment"):
        assert getattr(trace, name)[padded].isnan().all()
    assert not trace.across[padded].any()


def test_asking_again_without_having_moved_is_no_step(generator):
    known = linear(generator=generator)

    def hesitant(neuron, x, level):
        for point in (x, x, x + 1, x + 1):
            neuron.value_and_grad(point)
            neuron.value(point)
        return answer(neuron, x, x + 1, 4)

    trace = trace_attack(hesitant, known.neuron, known.x, known.level)
    assert (trace.steps == 2).all()
    assert (trace.gradients == 4).all()
    assert (trace.forwards == 9).all()
    assert not trace.cosine[:, 0].isnan().any()


def test_an_attack_without_gradients_has_no_steps(generator):
    known = linear(generator=generator)
    trace = trace_attack(lambda f, x, c: answer(f, x, x + 1, 0), known.neuron, known.x, known.level)
    assert trace.response.shape == (len(known), 0)
    assert (trace.steps == 0).all()
    assert (trace.forwards == 1).all()
    assert "0 to 0 steps" in repr(trace)


def test_a_failed_case_has_its_way_and_its_status():
    neuron = Neuron(lambda x: x.sum(1).tanh(), (3,), Box(-1.0, 1.0))
    level = torch.tensor([0.5, 2.0], dtype=torch.float64)
    trace = trace_attack(closest_point, neuron, torch.zeros(2, 3, dtype=torch.float64), level)
    assert names(trace.status)[0] == "DONE"
    assert trace.solution.success.tolist() == [True, False]
    assert (trace.steps >= 1).all()
    assert not trace.across[1].any()


def test_points_are_kept_only_when_asked_for(generator):
    known = linear(generator=generator)
    assert trace_attack(ascent(), known.neuron, known.x, known.level).points is None
    assert trace_attack(ascent(), known.neuron, known.x, known.level).mei_alignment is None
    points = trace_attack(ascent(2, 0.5), known.neuron, known.x, known.level, keep_points=True).points
    assert torch.equal(points[:, 0], known.x)
    torch.testing.assert_close(
        (points[:, 1] - known.x).norm(dim=1), torch.full((len(known),), 0.5, dtype=torch.float64)
    )


def test_a_flat_place_has_no_normal():
    neuron, x, level = FAILURES[Status.FLAT]
    trace = trace_attack(closest_point, neuron, torch.tensor([x], dtype=torch.float64), level)
    assert names(trace.status) == ["FLAT"]
    assert trace.cosine.isnan().all()


# --- the attack does not notice


@pytest.mark.parametrize("make", [linear, sphere, quadric])
def test_the_answer_is_bit_identical_to_that_without_a_trace(generator, make):
    known = make(generator=generator)
    for attack in (closest_point, ascent(), random_walk(4)):
        assert_same(
            trace_attack(attack, known.neuron, known.x, known.level).solution,
            attack(known.neuron, known.x, known.level),
            rtol=0, atol=0,
        )  # fmt: skip


def test_a_case_alone_has_the_trace_it_has_in_the_batch(generator):
    known, mei = quadric(4, generator=generator), normal(4, 6, generator=generator)
    together = trace_attack(closest_point, known.neuron, known.x, known.level, mei=mei, keep_points=True)
    for i in range(len(known)):
        one = known.select(i)
        alone = trace_attack(closest_point, one.neuron, one.x, one.level, mei=mei[i], keep_points=True)
        for name, value in tensors(alone).items():
            other = getattr(together, name)[i : i + 1]
            other = other[:, : int(alone.steps)] if value.ndim > 1 else other
            torch.testing.assert_close(
                value, other, equal_nan=True, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_inputs_may_have_any_shape(generator):
    known = quadric(generator=generator)
    shaped = Neuron(lambda x, *given: known.neuron.response(x.flatten(1), *given), (2, 3), given=known.neuron.given)
    flat = trace_attack(closest_point, known.neuron, known.x, known.level, keep_points=True)
    trace = trace_attack(closest_point, shaped, known.x.reshape(-1, 2, 3), known.level, keep_points=True)
    assert trace.points.shape == (*flat.response.shape, 2, 3)
    for name in ("response", "distance", "cosine", "alignment", "steps"):
        torch.testing.assert_close(getattr(trace, name), getattr(flat, name), equal_nan=True)


def test_a_neuron_that_differs_between_cases_is_traced_case_by_case(generator):
    w = normal(4, 5, generator=generator)
    x = normal(4, 5, generator=generator)
    many = trace_attack(ascent(), Neuron(dot, (5,), given=(w,)), x, 50.0)
    for i in range(4):
        one = trace_attack(ascent(), Neuron(lambda z, i=i: z @ w[i], (5,)), x[i : i + 1], 50.0)
        torch.testing.assert_close(one.response, many.response[i : i + 1])
        torch.testing.assert_close(one.cosine, many.cosine[i : i + 1])


def test_the_mei_is_seen_from_the_middle_of_its_starts(generator):
    w = normal(5, generator=generator)
    neuron = Neuron(lambda x: x @ w, (5,))
    center = normal(5, generator=generator)
    mei = most_exciting_input(neuron, norm=2.0, center=center, generator=generator)
    trace = trace_attack(ascent(), neuron, normal(3, 5, generator=generator), 100.0, mei=mei)
    torch.testing.assert_close(trace.mei_alignment[:, 1:], torch.ones(3, 4, dtype=torch.float64), rtol=0, atol=1e-6)


# --- foolbox


@pytest.fixture
def foolbox():
    return pytest.importorskip("foolbox")


@pytest.fixture
def plane(generator):
    w = normal(6, generator=generator)
    neuron = Neuron(lambda x: x @ w, (6,), Box(-4.0, 4.0))
    x = uniform(5, 6, low=-0.5, high=0.5, generator=generator)
    level = neuron.value(x) + torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0], dtype=torch.float64)
    return neuron, x, level


def test_foolbox_attacks_are_traced_and_do_not_notice(foolbox, plane):
    neuron, x, level = plane
    attacks = foolbox.attacks
    for attack in (
        attacks.DDNAttack(steps=20),
        attacks.L2DeepFoolAttack(steps=20),
        attacks.L2CarliniWagnerAttack(1, steps=5),
    ):
        watched = trace_attack(from_foolbox(attack), neuron, x, level)
        assert_same(watched.solution, from_foolbox(attack)(neuron, x, level), rtol=0, atol=0)
        assert (watched.cosine[:, 0] > 0.8).all()  # Carlini and Wagner's first step is one along signs
        assert (watched.gradients >= watched.steps).all()


def test_foolbox_steps_on_a_linear_neuron_are_known(foolbox, plane):
    """DDN goes along the normal and back; DeepFool reaches the plane at once; its answer is the last step's end."""
    neuron, x, level = plane
    ddn = trace_attack(from_foolbox(foolbox.attacks.DDNAttack(steps=20)), neuron, x, level)
    assert (ddn.steps == 20).all()
    assert_ones(ddn.alignment[:, 1:])
    assert_ones(ddn.cosine[:, :-1].abs())
    assert ddn.cosine[:, -1].isnan().all()  # the answer is the best iterate, not a new point
    deepfool = trace_attack(from_foolbox(foolbox.attacks.L2DeepFoolAttack(steps=20)), neuron, x, level)
    assert (deepfool.steps == 2).all()
    assert_ones(deepfool.cosine[:, 0])


def test_the_last_step_leads_to_the_answer_where_that_is_a_new_point(foolbox, plane):
    """One-step attacks would have no steps otherwise."""
    neuron, x, level = plane
    fgm = foolbox.attacks.L2FastGradientAttack()
    attack = FoolboxAttack(lambda model, inputs, labels, *, epsilons: fgm(model, inputs, labels, epsilons=3.0))
    trace = trace_attack(attack, neuron, x, level)
    assert trace.cosine.shape == (5, 1)
    assert_ones(trace.cosine)


# --- bad input


def test_an_unwrapped_foolbox_attack_is_refused(foolbox, plane):
    neuron, x, level = plane
    with pytest.raises(
        TypeError, match=r"expected a function \(neuron, x, level\) -> Solution, .*; use from_foolbox\(attack\)"
    ):
        trace_attack(foolbox.attacks.DDNAttack(), neuron, x, level)


def test_an_attack_must_answer_with_a_solution_of_every_case(plane):
    neuron, x, level = plane
    with pytest.raises(TypeError, match="must answer with a Solution, got Tensor from"):
        trace_attack(lambda f, x, level: x, neuron, x, level)
    with pytest.raises(ValueError, match=r"one point per case, shape \(5, 6\), got \(2, 6\)"):
        trace_attack(lambda f, x, level: answer(f.select(torch.arange(2)), x[:2], x[:2], 1), neuron, x, level)


def test_cases_left_out_must_be_left_out_of_the_neuron_too(plane):
    neuron, x, level = plane
    with pytest.raises(
        ValueError, match=r"asked about 2 points, but the neuron stands for 5 cases; .* neuron.select\(cases\)"
    ):
        trace_attack(lambda f, x, level: f.value(x[:2]), neuron, x, level)


def test_several_points_of_one_case_are_no_single_way(plane):
    neuron, x, level = plane
    twice = torch.tensor([0, 0, 1, 1])

    def attack(f, x, level):
        assert f.select(twice).value(x[twice]).shape == (4,)  # without gradient it is a search like any other
        return f.select(twice).value_and_grad(x[twice])

    with pytest.raises(ValueError, match=r"several points of one case at a time, .* one start per case"):
        trace_attack(attack, neuron, x, level)


def test_a_wrong_mei_or_level_is_refused(plane):
    neuron, x, level = plane
    with pytest.raises(ValueError, match=r"mei must have the shape of one input, \(6,\), got \(3,\)"):
        trace_attack(ascent(), neuron, x, level, mei=torch.zeros(3))
    with pytest.raises(ValueError, match="mei must be finite"):
        trace_attack(ascent(), neuron, x, level, mei=torch.full((6,), torch.nan))
    with pytest.raises(ValueError, match="level must be finite"):
        trace_attack(ascent(), neuron, x, float("nan"))


def test_the_drawing_has_a_line_for_every_attack_with_its_name():
    figure = pytest.importorskip("matplotlib.figure")
    from isoresponse import plot

    neuron = Neuron(lambda x: x.square().sum(1), (3,))
    x = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    ax = plot.traces(figure.Figure().subplots(), {"ours": trace_attack(closest_point, neuron, x, 9.0)})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ours (2)"]
    assert "in the box" in ax.get_ylabel()
    with pytest.raises(ValueError, match="at least one name"):
        plot.traces(ax, {})
