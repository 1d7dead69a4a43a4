"""Iso-response geometry of PyTorch models: predict a susceptibility, measure it, explain the difference.

The names below are the whole public interface. They are loaded on first use, so that importing the
package (and `isoresponse --help`) does not wait for torch. Tables (`isoresponse.records`), figures
(`isoresponse.plot`) and the built-in models (`isoresponse.models`) are imported by name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoresponse.attacks import Attack, FoolboxAttack, from_foolbox
    from isoresponse.calibration import Calibrated, calibrate
    from isoresponse.certificates import Certificate, certify_decision, certify_level, certify_pointwise
    from isoresponse.checks import NeuronCheck, check_neuron
    from isoresponse.chords import chord_jet
    from isoresponse.classifier import Classifier
    from isoresponse.crossing import Solution
    from isoresponse.cuts import curvatures_within
    from isoresponse.directions import attack_directions, comparison_directions, phase_shifted, random_directions
    from isoresponse.distribution import (
        CurvatureSpectrum,
        MeanCurvature,
        Taxonomy,
        curvature_spectrum,
        mean_curvature,
        taxonomy,
    )
    from isoresponse.exciting import MostExciting, most_exciting_input
    from isoresponse.explanation import Explanation, explain, pool_factors
    from isoresponse.factors import Factors, adversary_factors, level_factors
    from isoresponse.foolbox_attack import closest_adversary_attack
    from isoresponse.fraction import Fraction, Share, adversarial_fraction, increasing_share
    from isoresponse.geometry import (
        Curvatures,
        FlatHessianWarning,
        LocalGeometry,
        NormalCurvature,
        local_geometry,
        normal_curvature,
        principal_curvatures,
        shape_operator,
        subspace_curvatures,
    )
    from isoresponse.grid import GridSolution, closest_point_on_grid
    from isoresponse.hooks import units
    from isoresponse.jets import Jet, JetBuilder, exact_jet, secant_jet, smoothed_jet
    from isoresponse.krylov import krylov_jet
    from isoresponse.lattice import LatticeSolution, on_lattice
    from isoresponse.lines import line_mass
    from isoresponse.lirpa import lirpa_bound
    from isoresponse.loop import Status
    from isoresponse.marching import marching_distance
    from isoresponse.masking import Alarm, MaskingReport, masking_alarms
    from isoresponse.mass import (
        PredictedMass,
        SecondOrderMass,
        jointly,
        predicted_joint_mass,
        predicted_mass,
        second_order_mass,
    )
    from isoresponse.multistart import LocalGlobal, local_against_global
    from isoresponse.neuron import Box, Neuron
    from isoresponse.newton import to_level
    from isoresponse.noise import Mass, sampled_mass
    from isoresponse.operators import SymmetricOperator
    from isoresponse.paiton2020 import PublishedCurvatures, published_curvatures
    from isoresponse.paths import Path, gradient_path, iso_walk
    from isoresponse.planes import Plane, ResponseSurface, contours, response_surface
    from isoresponse.prediction import Boundaries, Doubt, Prediction, Predictor
    from isoresponse.predictors import AlongTheWay, Clever, FirstOrder, FootPoints, Krylov, Margin
    from isoresponse.quality import (
        Quality,
        agreement,
        alignment,
        coded_share,
        compare_quality,
        growth,
        low_frequency_share,
        on_manifold_share,
        pointwise_control,
    )
    from isoresponse.scales import ManyScales
    from isoresponse.sections import SectionCurvature, plane_basis, sagitta_curvature, section, section_curvature
    from isoresponse.solve import closest_point
    from isoresponse.spacing import Detours, SpacingProfile, greedy_against_closest, spacing_profile, straight_way
    from isoresponse.subset import subset_mass
    from isoresponse.subspace import AdversarialSubspace, adversarial_subspace
    from isoresponse.survey import PlaneSurvey, SurveyGrid, survey_planes
    from isoresponse.susceptibility import Comparison, compare, predict_distance, propose_scale
    from isoresponse.trace import AttackTrace, trace_attack

__version__ = "0.1.0"

_HOME = {
    "attacks": ("Attack", "FoolboxAttack", "from_foolbox"),
    "calibration": ("Calibrated", "calibrate"),
    "certificates": ("Certificate", "certify_decision", "certify_level", "certify_pointwise"),
    "checks": ("NeuronCheck", "check_neuron"),
    "chords": ("chord_jet",),
    "classifier": ("Classifier",),
    "crossing": ("Solution",),
    "cuts": ("curvatures_within",),
    "directions": ("attack_directions", "comparison_directions", "phase_shifted", "random_directions"),
    "distribution": (
        "CurvatureSpectrum",
        "MeanCurvature",
        "Taxonomy",
        "curvature_spectrum",
        "mean_curvature",
        "taxonomy",
    ),
    "exciting": ("MostExciting", "most_exciting_input"),
    "explanation": ("Explanation", "explain", "pool_factors"),
    "factors": ("Factors", "adversary_factors", "level_factors"),
    "foolbox_attack": ("closest_adversary_attack",),
    "fraction": ("Fraction", "Share", "adversarial_fraction", "increasing_share"),
    "geometry": (
        "Curvatures",
        "FlatHessianWarning",
        "LocalGeometry",
        "NormalCurvature",
        "local_geometry",
        "normal_curvature",
        "principal_curvatures",
        "shape_operator",
        "subspace_curvatures",
    ),
    "grid": ("GridSolution", "closest_point_on_grid"),
    "hooks": ("units",),
    "jets": ("Jet", "JetBuilder", "exact_jet", "secant_jet", "smoothed_jet"),
    "krylov": ("krylov_jet",),
    "lattice": ("LatticeSolution", "on_lattice"),
    "lines": ("line_mass",),
    "lirpa": ("lirpa_bound",),
    "loop": ("Status",),
    "marching": ("marching_distance",),
    "masking": ("Alarm", "MaskingReport", "masking_alarms"),
    "mass": (
        "PredictedMass",
        "SecondOrderMass",
        "jointly",
        "predicted_joint_mass",
        "predicted_mass",
        "second_order_mass",
    ),
    "multistart": ("LocalGlobal", "local_against_global"),
    "neuron": ("Box", "Neuron"),
    "newton": ("to_level",),
    "noise": ("Mass", "sampled_mass"),
    "operators": ("SymmetricOperator",),
    "paiton2020": ("PublishedCurvatures", "published_curvatures"),
    "paths": ("Path", "gradient_path", "iso_walk"),
    "planes": ("Plane", "ResponseSurface", "contours", "response_surface"),
    "prediction": ("Boundaries", "Doubt", "Prediction", "Predictor"),
    "predictors": ("AlongTheWay", "Clever", "FirstOrder", "FootPoints", "Krylov", "Margin"),
    "quality": (
        "Quality",
        "agreement",
        "alignment",
        "coded_share",
        "compare_quality",
        "growth",
        "low_frequency_share",
        "on_manifold_share",
        "pointwise_control",
    ),
    "scales": ("ManyScales",),
    "sections": ("SectionCurvature", "plane_basis", "sagitta_curvature", "section", "section_curvature"),
    "solve": ("closest_point",),
    "spacing": ("Detours", "SpacingProfile", "greedy_against_closest", "spacing_profile", "straight_way"),
    "subset": ("subset_mass",),
    "subspace": ("AdversarialSubspace", "adversarial_subspace"),
    "survey": ("PlaneSurvey", "SurveyGrid", "survey_planes"),
    "susceptibility": ("Comparison", "compare", "predict_distance", "propose_scale"),
    "trace": ("AttackTrace", "trace_attack"),
}

__all__ = [
    "AdversarialSubspace",
    "Alarm",
    "AlongTheWay",
    "Attack",
    "AttackTrace",
    "Boundaries",
    "Box",
    "Calibrated",
    "Certificate",
    "Classifier",
    "Clever",
    "Comparison",
    "CurvatureSpectrum",
    "Curvatures",
    "Detours",
    "Doubt",
    "Explanation",
    "Factors",
    "FirstOrder",
    "FlatHessianWarning",
    "FoolboxAttack",
    "FootPoints",
    "Fraction",
    "GridSolution",
    "Jet",
    "JetBuilder",
    "Krylov",
    "LatticeSolution",
    "LocalGeometry",
    "LocalGlobal",
    "ManyScales",
    "Margin",
    "MaskingReport",
    "Mass",
    "MeanCurvature",
    "MostExciting",
    "Neuron",
    "NeuronCheck",
    "NormalCurvature",
    "Path",
    "Plane",
    "PlaneSurvey",
    "PredictedMass",
    "Prediction",
    "Predictor",
    "PublishedCurvatures",
    "Quality",
    "ResponseSurface",
    "SecondOrderMass",
    "SectionCurvature",
    "Share",
    "Solution",
    "SpacingProfile",
    "Status",
    "SurveyGrid",
    "SymmetricOperator",
    "Taxonomy",
    "adversarial_fraction",
    "adversarial_subspace",
    "adversary_factors",
    "agreement",
    "alignment",
    "attack_directions",
    "calibrate",
    "certify_decision",
    "certify_level",
    "certify_pointwise",
    "check_neuron",
    "chord_jet",
    "closest_adversary_attack",
    "closest_point",
    "closest_point_on_grid",
    "coded_share",
    "compare",
    "compare_quality",
    "comparison_directions",
    "contours",
    "curvature_spectrum",
    "curvatures_within",
    "exact_jet",
    "explain",
    "from_foolbox",
    "gradient_path",
    "greedy_against_closest",
    "growth",
    "increasing_share",
    "iso_walk",
    "jointly",
    "krylov_jet",
    "level_factors",
    "line_mass",
    "lirpa_bound",
    "local_against_global",
    "local_geometry",
    "low_frequency_share",
    "marching_distance",
    "masking_alarms",
    "mean_curvature",
    "most_exciting_input",
    "normal_curvature",
    "on_lattice",
    "on_manifold_share",
    "phase_shifted",
    "plane_basis",
    "pointwise_control",
    "pool_factors",
    "predict_distance",
    "predicted_joint_mass",
    "predicted_mass",
    "principal_curvatures",
    "propose_scale",
    "published_curvatures",
    "random_directions",
    "response_surface",
    "sagitta_curvature",
    "sampled_mass",
    "secant_jet",
    "second_order_mass",
    "section",
    "section_curvature",
    "shape_operator",
    "smoothed_jet",
    "spacing_profile",
    "straight_way",
    "subset_mass",
    "subspace_curvatures",
    "survey_planes",
    "taxonomy",
    "to_level",
    "trace_attack",
    "units",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOME.items():
        if name in names:
            value = getattr(import_module(f"isoresponse.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'isoresponse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
