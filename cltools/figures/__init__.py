"""All figures by name: what each shows, and which experiments have the cells and tables for it.

This registry imports neither matplotlib nor polars, so that the Snakefile lists its targets
quickly. `draw` imports the module of a figure.
"""

from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cltools.config.sweeps import Sweeps, base_sweep, sweeps_over
from cltools.layout import COLLECTED, OF_CELLS
from cltools.runtime.errors import InputError

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from cltools.config.experiment import Experiment
    from cltools.figures.tables import ExperimentTables


REFERENCE = "reference"


def papers_file(name: str) -> Path:
    """The file of the papers' numbers of this name; `papers/README.md` explains its columns."""
    return Path(__file__).parent / "papers" / f"{name}.csv"


@dataclass(frozen=True)
class FigureSpec:
    """One figure. The function of the same name in `cltools.figures.<module>` draws it.

    factors: a sweep must vary one of these. Without factors, the figure shows the base sweep, or
        no cells at all.
    classes: one of these sweeps must have cells with this number of classes, the only ones shown.
    tables: the tables that the figure needs.
    stages: stages that the config must ask for, since the figure shows their results.
    optional: tables that it shows too, if they exist.
    papers: files with numbers of the papers (`papers_file`) that it shows next to cells of the same
        data set.
    objectives: some cell must train each of these; "reference" stands for the one that the
        experiment compares all others with.
    fewest: so many different objectives must be trained.
    own_labels: whether it shows objectives that have labels of their own, too.
    """

    description: str
    module: str
    factors: tuple[str, ...] = ()
    classes: int | None = None
    tables: tuple[str, ...] = ("measures",)
    stages: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    objectives: tuple[str, ...] = ("dcl",)
    fewest: int = 1
    own_labels: bool = False

    def swept(self, sweeps: Sweeps) -> bool:
        """Whether `sweeps` hold the cells that this figure shows."""
        if self.factors:
            names = sweeps_over(sweeps, *self.factors)
            if self.classes is not None:
                return any(self.classes in sweeps[name].get("classes", ()) for name in names)
            return bool(names)
        return not set(self.tables) & set(COLLECTED) or base_sweep(sweeps) is not None

    def needs(
        self,
        sweeps: Sweeps,
        stages: Collection[str] = (),
        objectives: Collection[str] = ("dcl",),
        reference: str = "dcl",
    ) -> bool:
        """Whether an experiment with these sweeps, further stages and objectives can draw it."""
        further = {*self.stages, *self.tables} - set(OF_CELLS)
        wanted = {reference if name == REFERENCE else name for name in self.objectives}
        trained = set(objectives)
        enough = wanted <= trained and len(trained) >= self.fewest
        return further <= set(stages) and enough and self.swept(sweeps)

    def tables_of(self, stages: Collection[str]) -> list[str]:
        """The tables from which it is drawn in an experiment with these further stages."""
        return [*self.tables, *(table for table in self.optional if table in stages)]


FIGURES: dict[str, FigureSpec] = {
    "alignment_training": FigureSpec(
        "CKA and RSA of every objective with the reference against the epoch, on training and test "
        "images.",
        "alignment",
        papers=("p2_alignment_training",),
        objectives=(REFERENCE,),
    ),
    "alignment_classes": FigureSpec(
        "CKA and RSA with the reference at the end of training against the number of classes.",
        "alignment",
        factors=("classes",),
        objectives=(REFERENCE,),
    ),
    "alignment_classes_epochs": FigureSpec(
        "CKA of NSCL with the reference against the number of classes and the epoch, as heat maps.",
        "alignment",
        factors=("classes",),
        papers=("p2_classes",),
        objectives=(REFERENCE,),
    ),
    "alignment_temperature": FigureSpec(
        "CKA and RSA with the reference at the end of training against the temperature.",
        "alignment",
        factors=("tau",),
        objectives=(REFERENCE,),
    ),
    "alignment_batch_size": FigureSpec(
        "CKA and RSA with the reference at the end of training against the batch size, for each "
        "learning-rate rule.",
        "alignment",
        factors=("batch_size",),
        objectives=(REFERENCE,),
    ),
    "alignment_schedules": FigureSpec(
        "CKA with the reference against the epoch, for each schedule of the learning rate.",
        "alignment",
        factors=("lr_schedule",),
        objectives=(REFERENCE,),
        own_labels=True,
    ),
    "alignment_coupling": FigureSpec(
        "Alignment with DCL at the end of training, by the kinds of randomness that are shared.",
        "coupling",
        factors=("coupling",),
    ),
    "alignment_architectures": FigureSpec(
        "CKA and RSA with the reference at the end of training by data set and architecture, and "
        "for each kind of projector.",
        "architectures",
        factors=("architecture", "dataset", "projector_layers", "projector_norm"),
        papers=("p2_architectures",),
        objectives=(REFERENCE,),
    ),
    "residual_alignment": FigureSpec(
        "Alignment with the reference: of whole features, without class means, and of class means "
        "alone.",
        "residual",
        objectives=(REFERENCE,),
    ),
    "alignment_pairs": FigureSpec(
        "Alignment of all pairs of objectives at the end of training, and how they group.",
        "pairs",
        objectives=(),
        fewest=3,
        own_labels=True,
    ),
    "labels_negatives": FigureSpec(
        "Alignment with DCL against the share of negatives that labels drop: of whole classes, and "
        "of random ones.",
        "labels",
        objectives=("dcl", "nscl:shuffled"),
        own_labels=True,
    ),
    "label_effect": FigureSpec(
        "Alignment of NSCL with DCL, with true and with shuffled labels: in training, and against "
        "temperature and number of classes.",
        "labels",
        objectives=("dcl", "nscl:shuffled"),
        own_labels=True,
    ),
    "losses_training": FigureSpec(
        "DCL and NSCL loss during training, and the bound on their gap.",
        "losses",
        tables=("log",),
    ),
    "nscl_losses": FigureSpec(
        "NSCL loss of the DCL-trained and of the NSCL-trained network during training.",
        "losses",
        papers=("p1_nscl_loss",),
    ),
    "gap_classes": FigureSpec(
        "Loss gap DCL − NSCL against the number of classes, and its bound.",
        "losses",
        factors=("classes",),
    ),
    "cdnv_training": FigureSpec(
        "CDNV, the variance within classes relative to the distance between them, during training.",
        "collapse",
        papers=("p1_cdnv", "p2_cdnv"),
    ),
    "weights_representations": FigureSpec(
        "Distance of the weights and representations of every objective from those of the "
        "reference.",
        "weights",
        papers=("p2_weights",),
        objectives=(REFERENCE,),
    ),
    "bound_tightness": FigureSpec(
        "How far the bounds are from measured values, and how often they are violated.",
        "bounds",
        tables=("theory",),
    ),
    "downstream": FigureSpec(
        "Accuracy of the nearest class center and of a linear probe for every objective.",
        "downstream",
        papers=("p2_downstream",),
    ),
    "few_shot": FigureSpec(
        "Few-shot error of every objective against the number of shots, and the bound on it.",
        "few_shot",
        tables=("measures", "theory"),
    ),
    "few_shot_z": FigureSpec(
        "The same for the projections z, as in the papers.",
        "few_shot",
        tables=("measures", "theory"),
    ),
    "merging": FigureSpec(
        "Accuracy and alignment on the line between the weights of the reference and of another "
        "objective.",
        "merging",
        stages=("merge",),
        objectives=(REFERENCE,),
    ),
    "layers_training": FigureSpec(
        "CKA of every layer with the same layer of the reference, and with itself before training, "
        "against the epoch, as heat maps.",
        "layers",
        tables=("layers",),
        objectives=(REFERENCE,),
    ),
    "layers_pairs": FigureSpec(
        "CKA of every layer of every objective with every layer of the reference at the end of "
        "training, as heat maps.",
        "layers",
        tables=("layers",),
        objectives=(REFERENCE,),
    ),
    "features_plane": FigureSpec(
        "Features of the same images in two dimensions, for every objective and checkpoint.",
        "pictures",
        tables=("measures", "project"),
    ),
    "surrogate_drift": FigureSpec(
        "Drift between CL and NSCL in similarity descent, with its bound, and between networks.",
        "surrogate",
        tables=("surrogate",),
        optional=("regularity",),
    ),
    "collapse_geometry": FigureSpec(
        "How close class means are to a simplex, and images to their class means, for networks "
        "and free embeddings.",
        "collapse",
        optional=("minimise",),
    ),
    "class_means_space": FigureSpec(
        "The means of four classes in three dimensions at several checkpoints, and the simplex.",
        "simplex",
        factors=("classes",),
        classes=4,
    ),
    "collapse_order": FigureSpec(
        "How soon the free embeddings of a class come together with each objective.",
        "order",
        tables=("minimise",),
    ),
}


def figures_of(experiment: "Experiment", stages: Collection[str] | None = None) -> list[str]:
    """The figures for which an experiment has the cells and these of its further stages [all]."""
    trained = {o for plan in experiment.plans.values() for o in plan.cell["objectives"]}
    done = experiment.further_stages if stages is None else stages
    needs = (experiment.sweeps, done, trained, experiment.reference)
    return [name for name, spec in FIGURES.items() if spec.needs(*needs)]


def draw(name: str, experiment: "ExperimentTables") -> tuple["Figure", "pl.DataFrame"]:
    """Draw figure `name`; returns it and a table of exactly the numbers that it shows.

    Raises InputError for an unknown name, or when no sweep has the cells that it shows.
    """
    if name not in FIGURES:
        raise InputError(f"no figure is called {name!r}: choose one of {', '.join(FIGURES)}")
    spec = FIGURES[name]
    if not spec.swept(experiment.sweeps):
        varied = " or ".join(spec.factors) or "only the seed"
        if spec.classes is not None:
            varied += f", with {spec.classes} classes among its values"
        raise InputError(f"figure {name} needs a sweep that varies {varied}: add one to the config")
    if not spec.own_labels:
        experiment = experiment.without_own_labels()
    return getattr(import_module(f"cltools.figures.{spec.module}"), name)(experiment)
