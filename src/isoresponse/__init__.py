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
    from isoresponse.checks import NeuronCheck, check_neuron
    from isoresponse.classifier import Classifier
    from isoresponse.crossing import Solution
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
    from isoresponse.foolbox_attack import closest_adversary_attack
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
    from isoresponse.hooks import units
    from isoresponse.jets import Jet, JetBuilder, exact_jet, secant_jet, smoothed_jet
    from isoresponse.krylov import krylov_jet
    from isoresponse.lattice import LatticeSolution, on_lattice
    from isoresponse.loop import Status
    from isoresponse.masking import Alarm, MaskingReport, masking_alarms
    from isoresponse.neuron import Box, Neuron
    from isoresponse.newton import to_level
    from isoresponse.operators import SymmetricOperator
    from isoresponse.paiton2020 import PublishedCurvatures, published_curvatures
    from isoresponse.paths import Path, gradient_path, iso_walk
    from isoresponse.planes import Plane, ResponseSurface, contours, response_surface
    from isoresponse.sections import SectionCurvature, plane_basis, sagitta_curvature, section, section_curvature
    from isoresponse.solve import closest_point
    from isoresponse.survey import PlaneSurvey, SurveyGrid, survey_planes
    from isoresponse.susceptibility import Comparison, Prediction, compare, predict_distance, propose_scale
    from isoresponse.trace import AttackTrace, trace_attack

__version__ = "0.1.0"

_HOME = {
    "attacks": (
        "Attack",
        "FoolboxAttack",
        "from_foolbox",
    ),
    "checks": (
        "NeuronCheck",
        "check_neuron",
    ),
    "classifier": ("Classifier",),
    "crossing": ("Solution",),
    "directions": ("attack_directions", "comparison_directions", "phase_shifted", "random_directions"),
    "exciting": (
        "MostExciting",
        "most_exciting_input",
    ),
    "distribution": (
        "CurvatureSpectrum",
        "MeanCurvature",
        "Taxonomy",
        "curvature_spectrum",
        "mean_curvature",
        "taxonomy",
    ),
    "foolbox_attack": ("closest_adversary_attack",),
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
    "hooks": ("units",),
    "jets": (
        "Jet",
        "JetBuilder",
        "exact_jet",
        "secant_jet",
        "smoothed_jet",
    ),
    "krylov": ("krylov_jet",),
    "lattice": ("LatticeSolution", "on_lattice"),
    "loop": ("Status",),
    "neuron": (
        "Box",
        "Neuron",
    ),
    "masking": ("Alarm", "MaskingReport", "masking_alarms"),
    "operators": ("SymmetricOperator",),
    "paiton2020": ("PublishedCurvatures", "published_curvatures"),
    "paths": (
        "Path",
        "gradient_path",
        "iso_walk",
    ),
    "planes": (
        "Plane",
        "ResponseSurface",
        "contours",
        "response_surface",
    ),
    "sections": ("SectionCurvature", "plane_basis", "sagitta_curvature", "section", "section_curvature"),
    "newton": ("to_level",),
    "solve": ("closest_point",),
    "survey": ("PlaneSurvey", "SurveyGrid", "survey_planes"),
    "susceptibility": (
        "Comparison",
        "Prediction",
        "compare",
        "predict_distance",
        "propose_scale",
    ),
    "trace": ("AttackTrace", "trace_attack"),
}

__all__ = [
    "Alarm",
    "Attack",
    "AttackTrace",
    "Box",
    "Classifier",
    "Comparison",
    "CurvatureSpectrum",
    "Curvatures",
    "FlatHessianWarning",
    "FoolboxAttack",
    "Jet",
    "JetBuilder",
    "LatticeSolution",
    "LocalGeometry",
    "MaskingReport",
    "MeanCurvature",
    "MostExciting",
    "Neuron",
    "NeuronCheck",
    "NormalCurvature",
    "Path",
    "Plane",
    "PlaneSurvey",
    "Prediction",
    "PublishedCurvatures",
    "ResponseSurface",
    "SectionCurvature",
    "Solution",
    "Status",
    "SurveyGrid",
    "SymmetricOperator",
    "Taxonomy",
    "attack_directions",
    "check_neuron",
    "closest_adversary_attack",
    "closest_point",
    "compare",
    "comparison_directions",
    "contours",
    "curvature_spectrum",
    "exact_jet",
    "from_foolbox",
    "gradient_path",
    "iso_walk",
    "krylov_jet",
    "local_geometry",
    "masking_alarms",
    "mean_curvature",
    "most_exciting_input",
    "normal_curvature",
    "on_lattice",
    "phase_shifted",
    "plane_basis",
    "predict_distance",
    "principal_curvatures",
    "propose_scale",
    "published_curvatures",
    "random_directions",
    "response_surface",
    "sagitta_curvature",
    "secant_jet",
    "section",
    "section_curvature",
    "shape_operator",
    "smoothed_jet",
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
