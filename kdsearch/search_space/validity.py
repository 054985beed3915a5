"""Whether a recipe makes sense, as far as can be told without building its student."""

from __future__ import annotations

from kdsearch.kd_methods import LOSS_SLOTS, METHODS, DataMethod, KDMethod, ModelSpec, Need
from kdsearch.kd_methods.strategy import EVERY, HYBRID, TEACHER
from kdsearch.search_space.recipe import NEUTRAL, Recipe
from kdsearch.search_space.students.family import STUDENTS
from kdsearch.search_space.students.transforms import TRANSFORMS


def problem(recipe: Recipe, teacher: ModelSpec | None, classes: int) -> str | None:
    """Why the recipe cannot work, or None.

    Every combination that no training could carry out has its reason here, so that none of them is left to crash.
    """
    family = STUDENTS[recipe.student.name]
    teaching_name = recipe.policies["teaching"].name
    teaching = METHODS[teaching_name]
    supplies: frozenset[Need] = getattr(teaching, "supplies", frozenset())
    own_objective = bool(getattr(teaching, "own_objective", False))
    plan = recipe.strategy().plan()
    trained_before = {model.name for model in plan.pretrain}
    fixed_teacher = bool(plan.residuals or {TEACHER, EVERY, *trained_before} & set(plan.teachers))
    # Instances, not classes: what a method reads can depend on its hyper-parameters.
    for slot, cls in recipe.methods():
        lacking = cls.branches - family.supports
        if lacking:
            return f"{slot}={cls.name} needs a student with a {min(lacking)}; {family.name} has none"
        unmet = cls.needs.teacher - supplies
        if unmet and slot != "teaching":
            return f"{slot}={cls.name} reads the teacher's {min(unmet)}, which teaching={teaching_name} does not supply"
        unseen = cls.needs.student - teaching.learns if slot in LOSS_SLOTS and cls.needs.teacher else frozenset()  # type: ignore[attr-defined]
        if unseen:
            return f"{slot}={cls.name} reads the student's {min(unseen)}, which teaching={teaching_name} does not show"
        if fixed_teacher and cls.needs.teacher and teacher is None:
            return f"{slot}={cls.name} needs a teacher, and the run has none"
        if not fixed_teacher and cls.needs.teacher and type(cls).prepare is not KDMethod.prepare:
            return f"{slot}={cls.name} prepares its teacher beforehand, and teaching={teaching_name} has no fixed one"
        compares = fixed_teacher and cls.same_classes and cls.needs.teacher
        if compares and teacher is not None and teacher.classes != classes:
            there = f"the teacher has {teacher.classes} classes and the data {classes}"
            return f"{slot}={cls.name} compares logits, but {there}"
        unlabelled = any(stage.terms == "all" and not stage.labels for stage in cls.stages())
        if unlabelled and not recipe.terms and not own_objective:
            return f"{slot}={cls.name} has a stage without labels, and the recipe has no loss term to fill it"
        by_labels = any(stage.terms == "none" and stage.labels for stage in cls.stages())
        if by_labels and not recipe.ce_weight:
            return f"{slot}={cls.name} ends with a stage of labels alone, and ce.weight is 0"
        shown = recipe.policies["data"]
        if by_labels and not METHODS[shown.name](**shown.hyper).label_weight():  # type: ignore[attr-defined]
            return f"{slot}={cls.name} ends with a stage of labels alone, and data={shown.name} leaves labels out"
    if plan.pivot and (teacher is None or teacher.classes != classes):
        return f"teaching={teaching_name} trains a teacher of the data's {classes} classes on, and the run has none"
    if plan.residuals and teacher is None:
        return f"teaching={teaching_name} closes the gap to a teacher, and the run has none"
    transform = TRANSFORMS[recipe.transform.name](**recipe.transform.hyper)
    if transform.revision is not None and (plan.residuals or HYBRID in plan.teachers):
        return f"transform={transform.name} changes networks half-way, and teaching={teaching_name} adds several up"
    optimizer = recipe.policies["optimizer"].name
    if HYBRID in plan.teachers and METHODS[optimizer].split_gradients:  # type: ignore[attr-defined]
        return f"optimizer={optimizer} takes losses apart, and those of teaching={teaching_name} belong to all learners"
    data = METHODS[recipe.policies["data"].name]
    if issubclass(data, DataMethod) and data.needs_teacher and "logits" not in recipe.terms:
        return f"data={data.name} trains on soft labels alone and needs a logit term"
    if issubclass(data, DataMethod) and data.fixed_teacher and not fixed_teacher:
        return f"data={data.name} labels its views by a fixed teacher, and teaching={teaching_name} has none"
    if teaching_name != NEUTRAL["teaching"] and not own_objective and not recipe.terms:
        return f"teaching={teaching_name} has nothing to teach: the recipe has no loss term"
    return None
