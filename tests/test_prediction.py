"""Predicted distances: closed forms in three norms and in boxes, what is counted, said and promised."""

from dataclasses import fields, replace

import pytest
import torch
from analytic import FAILURES, SOUND, counted, hollow, linear, names, normal, quadric, relu_net, sphere, tanh, uniform

from isoresponse.calibration import calibrate
from isoresponse.classifier import Classifier
from isoresponse.loop import Status
from isoresponse.neuron import Box, Neuron
from isoresponse.prediction import Boundaries, Doubt, Prediction, Predictor
from isoresponse.predictors import AlongTheWay, Clever, FirstOrder, FootPoints, Krylov, Margin
from isoresponse.scales import ManyScales
from isoresponse.solve import closest_point
from isoresponse.susceptibility import predict_distance

INF, NAN = float("inf"), float("nan")
GEOMETRIC = [FirstOrder(), AlongTheWay(), Krylov(), FootPoints(2)]
ALL = [Margin(), FirstOrder(inside_box=False), Clever(), *GEOMETRIC, ManyScales(64, 4, 8, 4)]


def named(predictor):
    return type(predictor).__name__ + ("" if getattr(predictor, "inside_box", True) else "-no-box")


def classifier(n=6, classes=4, box=None, *, generator):
    """A linear classifier, its weights and biases (float64)."""
    w, b = normal(classes, n, generator=generator), normal(classes, generator=generator)
    return Classifier(lambda x: x.flatten(1) @ w.T + b, (n,), classes, box or Box()), w, b


# --------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("predictor", [FirstOrder(False), Clever(), *GEOMETRIC], ids=named)
@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_a_linear_neuron_is_predicted_exactly_in_every_norm(generator, predictor, norm):
    """Gap over the dual norm of the gradient."""
    known = linear(8, generator=generator)
    value, gradient = known.neuron.value_and_grad(known.x)
    dual = {1.0: INF, 2.0: 2.0, INF: 1.0}[norm]
    told = predict_distance(known.neuron, known.x, known.level, predictor=predictor, norm=norm)
    expected = (known.level - value).abs() / torch.linalg.vector_norm(gradient, dual, dim=1)
    torch.testing.assert_close(told.distance, expected, rtol=1e-6, atol=0)
    assert set(names(told.status)) == {"DONE"}
    assert (told.doubt == 0).all()
    assert (told.rival == -1).all()
    if not isinstance(predictor, Clever):
        there = known.neuron.value(known.x + told.displacement)
        torch.testing.assert_close(there, known.level, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("predictor", GEOMETRIC, ids=named)
@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_a_linear_neuron_in_a_box_is_predicted_exactly_or_said_to_be_out_of_reach(generator, predictor, norm):
    known = linear(30, generator=generator)
    neuron, x = replace(known.neuron, box=Box(-1.0, 1.0)), torch.tanh(known.x)
    value, gradient = neuron.value_and_grad(x)
    farthest = (gradient.abs() * (gradient.sign() - x).abs()).sum(1)
    level = value + uniform(30, low=0.3, high=1.2, generator=generator) * farthest
    told = predict_distance(neuron, x, level, predictor=predictor, norm=norm)
    measured = closest_point(neuron, x, level, norm=norm)
    some = level - value < farthest
    assert 5 < int(some.sum()) < 30
    torch.testing.assert_close(told.distance[some], measured.distance[some], rtol=1e-4, atol=0)
    assert neuron.box.contains(x + told.displacement, atol=1e-9)[some].all()
    assert told.distance[~some].isnan().all()
    assert set(names(told.status[~some])) == {"UNREACHABLE"}


@pytest.mark.parametrize("predictor", [AlongTheWay(), Krylov(1), FootPoints(12)], ids=named)
@pytest.mark.parametrize("make", [sphere, hollow])
def test_the_spacing_of_a_sphere_is_seen(generator, predictor, make):
    """From where the gradient points at the answer, the way there is a parabola."""
    known = make(8, generator=generator)
    told = predict_distance(known.neuron, known.x, known.level, predictor=predictor)
    first = predict_distance(known.neuron, known.x, known.level, predictor=FirstOrder())
    wrong = (first.distance / known.distance).log().abs()
    assert ((told.distance / known.distance).log().abs() <= 0.5 * wrong + 1e-12).all()  # a distance has gradient one
    squared = Neuron(lambda x: x.square().sum(1), (2,))
    x = torch.tensor([[3.0, 4.0], [0.6, 0.8]], dtype=torch.float64)
    for level, truth in ((100.0, [5.0, 9.0]), (16.0, [1.0, 3.0])):
        told = predict_distance(squared, x, level, predictor=predictor)
        torch.testing.assert_close(told.distance, torch.tensor(truth).double(), rtol=1e-3, atol=0)


def test_the_whole_jet_is_exact_on_quadrics(generator):
    known = quadric(12, 5, low=0.0, high=5.0, generator=generator)
    told = predict_distance(known.neuron, known.x, known.level, predictor=Krylov(steps=5))
    torch.testing.assert_close(told.distance, known.distance, rtol=1e-3, atol=0)


def test_foot_points_come_to_the_closest_point_where_contours_are_gently_bent(generator):
    known = quadric(20, 5, low=-0.4, high=0.4, generator=generator)
    wrong = [
        (predict_distance(known.neuron, known.x, known.level, predictor=p).distance / known.distance).log().abs()
        for p in (FirstOrder(), FootPoints(2), FootPoints(30))
    ]
    assert float(wrong[1].median()) < 0.5 * float(wrong[0].median())
    assert float(wrong[2].median()) < 1e-4


@pytest.mark.parametrize("predictor", GEOMETRIC, ids=named)
@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_the_nearest_of_many_boundaries_is_found(generator, predictor, norm):
    clf, w, b = classifier(generator=generator)
    x = normal(20, 6, generator=generator)
    labels = clf.predict(x)
    dual = {1.0: INF, 2.0: 2.0, INF: 1.0}[norm]
    scores = x @ w.T + b
    gaps = scores.gather(1, labels[:, None]) - scores
    each = gaps / torch.linalg.vector_norm(w[labels][:, None] - w[None], dual, dim=2)
    each = each.scatter(1, labels[:, None], INF)
    told = clf.predict_distance(x, labels, predictor=predictor, norm=norm)
    torch.testing.assert_close(told.distance, each.amin(1), rtol=1e-6, atol=0)
    assert torch.equal(told.rival, each.argmin(1))


def test_the_margin_is_the_gap_and_its_rival_the_second_class(generator):
    clf, w, b = classifier(generator=generator)
    x = normal(9, 6, generator=generator)
    best = (x @ w.T + b).topk(2, dim=1)
    told = clf.predict_distance(x, clf.predict(x), predictor=Margin())
    torch.testing.assert_close(told.distance, best.values[:, 0] - best.values[:, 1])
    assert torch.equal(told.rival, best.indices[:, 1])
    assert told.displacement.isnan().all()
    assert (told.forwards == 1).all()


def test_clever_never_says_more_than_gap_over_the_slope_at_the_input(generator):
    known = tanh(9, generator=generator)
    clever, slope = (
        predict_distance(known.neuron, known.x, known.level, predictor=p) for p in (Clever(), FirstOrder(False))
    )
    assert (clever.distance <= slope.distance * (1 + 1e-12)).all()


# ------------------------------------------------------------------------------------------------- several scales


def dead_zone(n=12, zone=0.3):
    """Every element counts beyond a dead zone only, and two of them count most: the closest point is sparse."""
    weight = torch.cat([torch.tensor([3.0, 2.9]), 0.2 * torch.ones(n - 2)]).double()

    def response(x):
        return ((x.abs() - zone).relu() * weight).sum(1)

    return Neuron(response, (n,), Box(-1.0, 1.0))


def test_an_answer_behind_a_dead_zone_is_found_where_the_gradient_is_zero():
    """One element of weight 3: |d| = zone + level / 3."""
    neuron, x = dead_zone(), torch.zeros(3, 12, dtype=torch.float64)
    level = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    blind = predict_distance(neuron, x, level, predictor=FirstOrder())
    assert set(names(blind.status)) == {"FLAT"}
    told = predict_distance(neuron, x, level, predictor=ManyScales())
    torch.testing.assert_close(told.distance, 0.3 + level / 3, rtol=2e-2, atol=0)
    assert (told.doubt & int(Doubt.BLIND) > 0).all()
    assert (neuron.value(x + told.displacement) >= level - 1e-6).all()


@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_several_scales_are_near_the_answer_of_a_smooth_neuron_too(generator, norm):
    known = tanh(6, generator=generator)
    told = predict_distance(known.neuron, known.x, known.level, predictor=ManyScales(), norm=norm)
    exact = predict_distance(known.neuron, known.x, known.level, predictor=FootPoints(20), norm=norm)
    torch.testing.assert_close(told.distance, exact.distance, rtol=5e-2, atol=0)


def test_several_scales_ask_for_no_more_gradients_than_told(generator):
    clf, _, _ = classifier(8, 5, Box(-3.0, 3.0), generator=generator)
    x = normal(7, 8, generator=generator).clamp(-3, 3)
    told = clf.predict_distance(x, clf.predict(x), predictor=ManyScales(80, probes=20))
    assert int(told.gradients.max()) <= 80 + 4


# ------------------------------------------------------------------------------------------------ what is promised


@pytest.mark.parametrize("predictor", ALL, ids=named)
def test_reported_costs_are_the_true_costs(generator, predictor):
    net = relu_net(generator=generator)
    neuron, spent = counted(Neuron.of(net, shape=(6,), box=Box(-4.0, 4.0)))
    x = normal(9, 6, generator=generator).clamp(-4, 4)
    level = neuron.value(x) + 0.3
    spent.update(forwards=0, gradients=0)
    told = predict_distance(neuron, x, level, predictor=predictor)
    assert int(told.gradients.sum()) == spent["gradients"]
    assert int(told.forwards.sum()) == spent["forwards"]


@pytest.mark.parametrize("predictor", ALL, ids=named)
def test_a_case_alone_is_told_as_in_a_batch(generator, predictor):
    net = relu_net(generator=generator)
    neuron, x = Neuron.of(net, shape=(6,), box=Box(-4.0, 4.0)), normal(5, 6, generator=generator).clamp(-4, 4)
    level = neuron.value(x) + 0.4
    together = predict_distance(neuron, x, level, predictor=predictor)
    alone = predict_distance(neuron, x[2:3], level[2:3], predictor=predictor)
    searched = (
        {"gradients", "forwards"} if isinstance(predictor, ManyScales) else set()
    )  # a ray search's last digits cost
    for name in {f.name for f in fields(Prediction)} - searched:
        torch.testing.assert_close(getattr(alone, name), getattr(together, name)[2:3], equal_nan=True)


@pytest.mark.parametrize("predictor", ALL, ids=named)
def test_falling_is_rising_for_the_negative_neuron_and_images_keep_their_shape(generator, predictor):
    known = quadric(4, 6, generator=generator)
    inner = known.neuron
    image = replace(inner, response=lambda x, *g: -inner.response(x.flatten(1), *g), shape=(1, 2, 3))
    up = predict_distance(inner, known.x, known.level, predictor=predictor)
    down = predict_distance(image, known.x.reshape(4, 1, 2, 3), -known.level, predictor=predictor)
    torch.testing.assert_close(down.distance, up.distance, equal_nan=True)
    torch.testing.assert_close(down.displacement, up.displacement.reshape(4, 1, 2, 3), equal_nan=True)


@pytest.mark.parametrize("predictor", GEOMETRIC, ids=named)
@pytest.mark.parametrize("status", SOUND, ids=lambda s: s.name)
def test_a_failed_case_is_nan_and_leaves_its_neighbours_alone(predictor, status):
    neuron, x, _ = FAILURES[status]
    both = torch.tensor([x, [1.0, 3.0]], dtype=torch.float64)
    level = neuron.value(both)[1:] + 0.01
    together = predict_distance(neuron, both, level.expand(2), predictor=predictor)
    alone = predict_distance(neuron, both[1:], level, predictor=predictor)
    assert names(together.status) == [status.name, "DONE"]
    assert together.distance[0].isnan()
    assert together.displacement[0].isnan().all()
    torch.testing.assert_close(together.distance[1:], alone.distance)


def test_a_case_that_is_there_already_is_at_distance_zero(generator):
    clf, _, _ = classifier(generator=generator)
    x = normal(6, 6, generator=generator)
    labels = clf.predict(x)
    labels[:2] = (labels[:2] + 1) % 4
    told = clf.predict_distance(x, labels, predictor=FootPoints())
    rest = clf.predict_distance(x[2:], labels[2:], predictor=FootPoints())
    assert names(told.status)[:3] == ["ALREADY", "ALREADY", "DONE"]
    assert (told.distance[:2] == 0).all()
    assert (told.displacement[:2] == 0).all()
    torch.testing.assert_close(told.distance[2:], rest.distance)
    neuron = Neuron(lambda x: x.sum(1), (2,))
    assert names(predict_distance(neuron, torch.ones(1, 2), 2.0, predictor=Margin()).status) == ["ALREADY"]


def test_a_users_own_predictor_is_asked_like_a_built_in_one(generator):
    class Half:
        def __call__(self, ask: Boundaries) -> Prediction:
            first = FirstOrder()(ask)
            return replace(first, distance=0.5 * first.distance)

    assert isinstance(Half(), Predictor)
    clf, _, _ = classifier(generator=generator)
    x = normal(4, 6, generator=generator)
    half, whole = (clf.predict_distance(x, clf.predict(x), predictor=p) for p in (Half(), FirstOrder()))
    torch.testing.assert_close(2 * half.distance, whole.distance)


# -------------------------------------------------------------------------------------------------------- doubts


def test_reasons_are_sentences():
    nothing = torch.zeros(2, 1)
    none = torch.zeros(2, dtype=torch.int64)
    told = Prediction.of(
        nothing, none + int(Status.DONE), 2.0, gradients=none, forwards=none, doubt=torch.tensor([0, Doubt.BOX | Doubt.KINK])
    )  # fmt: skip
    assert told.reasons[0] == []
    assert [r.split()[0] for r in told.reasons[1]] == ["half", "gradient"]
    assert repr(told) == "Prediction(2 of 2 cases, median distance 0, 1 doubtful, 0.0 gradients per case)"
    assert len({s for d in Doubt for s in d.sentences}) == len(Doubt)


def test_a_first_order_that_sees_nothing_is_doubted():
    """Flat up to 0.9, then steep: the foot is far off the level."""
    neuron = Neuron(lambda x: 0.1 * x[:, 0] + 10 * (x[:, 0] - 0.9).relu(), (1,))
    told = predict_distance(neuron, torch.zeros(1, 1), 1.0, predictor=FootPoints(1))
    assert Doubt.BLIND in Doubt(int(told.doubt[0]))
    assert Doubt.UNSETTLED in Doubt(int(told.doubt[0]))
    settled = predict_distance(neuron, torch.zeros(1, 1), 1.0, predictor=FootPoints(12))
    assert Doubt.UNSETTLED not in Doubt(int(settled.doubt[0]))
    torch.testing.assert_close(settled.distance, torch.tensor([0.9 + 0.91 / 10.1]), rtol=1e-3, atol=0)


def test_a_perturbation_held_by_the_box_is_doubted():
    neuron = Neuron(lambda x: 3 * x[:, 0] + x[:, 1], (2,), Box(0.0, 1.0))
    x = torch.tensor([[0.9, 0.1], [0.1, 0.1]])
    told = predict_distance(neuron, x, neuron.value(x) + 0.8, predictor=FootPoints(1))
    assert [Doubt.BOX in Doubt(d) for d in told.doubt.tolist()] == [True, False]


# --------------------------------------------------------------------------------------------------- calibration


def draws(cases, *, generator, spreads=True):
    """Predictions whose error is proportional to their spread, and the truth."""
    spread = uniform(cases, low=0.02, high=0.5, generator=generator)
    truth = uniform(cases, low=0.5, high=3.0, generator=generator)
    distance = 1.3 * truth * (spread * normal(cases, generator=generator)).exp()
    none = torch.zeros(cases, dtype=torch.int64)
    told = Prediction.of(
        torch.zeros(cases, 1).double(), none + int(Status.DONE), 2.0, gradients=none, forwards=none, distance=distance,
        spread=spread if spreads else None,
    )  # fmt: skip
    return told, truth


def test_intervals_hold_as_often_as_they_say(generator):
    """On average over draws of 60 cases to learn from."""
    held, narrow = [], []
    for _ in range(30):
        new, truth = draws(1000, generator=generator)
        seen = calibrate(Margin(), *draws(60, generator=generator)).refined(new)
        inside = (seen.low <= truth) & (truth <= seen.high)
        held.append(float(inside.double().mean()))
        ratio = (seen.high / seen.low).log()
        narrow.append(float(ratio[new.spread < 0.1].median() / ratio[new.spread > 0.4].median()))
    assert 0.88 < sum(held) / 30 < 0.92
    assert sum(narrow) / 30 < 0.5  # narrower where the predictor's own estimates agree


def test_the_learned_scale_takes_away_a_factor_and_keeps_the_order(generator):
    told, truth = draws(200, generator=generator)
    learned = calibrate(Margin(), told, truth)
    seen = learned.refined(told)
    assert abs(float((seen.distance / truth).log().median())) < 0.02
    assert torch.equal(seen.distance.argsort(), told.distance.argsort())
    assert learned.cases == 200
    assert repr(learned).startswith("Calibrated(Margin(), 90 % from 200 cases, slope ")


def test_a_calibrated_predictor_is_asked_like_any_other(generator):
    """A margin becomes a distance: linear neurons of one slope, gap = 2 d."""
    neuron = Neuron(lambda x: 2 * x[:, 0], (2,))
    x = -uniform(40, 2, low=0.1, generator=generator)
    told = predict_distance(neuron, x, 0.0, predictor=Margin())
    learned = calibrate(Margin(), told, -x[:, 0])
    seen = predict_distance(neuron, x, 0.0, predictor=learned)
    torch.testing.assert_close(seen.distance, -x[:, 0], rtol=1e-6, atol=0)
    assert ((seen.low <= seen.distance) & (seen.distance <= seen.high)).all()


def test_cases_without_a_number_are_left_out(generator):
    told, truth = draws(30, generator=generator)
    truth[:5] = NAN
    assert calibrate(Margin(), told, truth).cases == 25


def test_constant_predictions_are_calibrated_to_one_factor(generator):
    told, truth = draws(40, generator=generator, spreads=False)
    told = replace(told, distance=torch.ones(40, dtype=torch.float64))
    learned = calibrate(Margin(), told, truth)
    torch.testing.assert_close(learned.refined(told).distance, truth.log().median().exp().expand(40))


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Krylov(0), "steps must be at least 1, got 0"),
        (lambda: FootPoints(0), "steps must be at least 1, got 0"),
        (lambda: Clever(1), "samples must be at least 2, got 1"),
        (
            lambda: ManyScales(10),
            "gradients must be at least 92 per case with 32 probes, got 10; FootPoints needs fewer",
        ),
        (lambda: ManyScales(probes=0), "probes must be at least 1, got 0"),
        (lambda: ManyScales(elements=0), "elements must be at least 1, got 0"),
        (lambda: ManyScales(depth=0), "depth must be at least 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_invalid_questions_are_refused(generator, unchecked):
    neuron = Neuron(lambda x: x.sum(1), (3,))
    with pytest.raises(ValueError, match="norm must be 1, 2 or float"):
        predict_distance(neuron, torch.zeros(2, 3), 1.0, predictor=Margin(), norm=3.0)
    with pytest.raises(ValueError, match=r"level must be a number or have shape \(2,\)"):
        unchecked(predict_distance)(neuron, torch.zeros(2, 3), torch.ones(3), predictor=Margin())
    clf, _, _ = classifier(generator=generator)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3"):
        clf.predict_distance(torch.zeros(1, 6).double(), torch.tensor([4]), predictor=Margin())
    with pytest.raises(ValueError, match="norm must be 1, 2 or float"):
        clf.predict_distance(torch.zeros(1, 6).double(), torch.tensor([0]), predictor=Margin(), norm=0.5)


def test_too_little_to_learn_from_is_refused(generator, unchecked):
    told, truth = draws(18, generator=generator)
    with pytest.raises(ValueError, match="an interval of 90 % needs at least 19 cases with both distances, got 18"):
        calibrate(Margin(), told, truth)
    assert calibrate(Margin(), told, truth, coverage=0.8).cases == 18
    with pytest.raises(ValueError, match="coverage must be between 0 and 1, got 90"):
        calibrate(Margin(), told, truth, coverage=90.0)
    with pytest.raises(ValueError, match=r"measured must have shape \(18,\), one per case told, got \(3,\)"):
        unchecked(calibrate)(Margin(), told, truth[:3])
