"""Every template by name; yours is `package.module:Class`."""

from rewards.judges.templates.assessment import Assessment
from rewards.judges.templates.base import Item, Mode, Template
from rewards.judges.templates.checklist import Checklist
from rewards.judges.templates.effort import Effort
from rewards.judges.templates.listwise import Listwise
from rewards.judges.templates.pairwise import Pairwise, PairwiseReference
from rewards.judges.templates.pointwise import Pointwise, PointwiseReference
from rewards.judges.templates.rubric import Rubric, RubricReference
from rewards.judges.templates.steps import StepMatches, StepReflections, Steps, StepsReference
from rewards.judges.templates.strength import PairwiseStrength

TEMPLATES: dict[str, type[Template]] = {
    t.kind: t
    for t in (
        Pointwise,
        PointwiseReference,
        Effort,
        Rubric,
        RubricReference,
        Checklist,
        Pairwise,
        PairwiseReference,
        PairwiseStrength,
        Listwise,
        Assessment,
        Steps,
        StepsReference,
        StepReflections,
        StepMatches,
    )
}

__all__ = ["TEMPLATES", "Item", "Mode", "Template"]
