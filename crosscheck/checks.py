"""The checks of an audit one by one, for tests.

    import crosscheck

    def test_training_step():
        crosscheck.checks.variables_train(model, {"x": batch}, "cross_entropy", labels)
        crosscheck.checks.only_these_train(model, {"x": batch}, trains=["generator.*"], step=step)

Each takes what `crosscheck.audit` takes, raises an AssertionError that says what is the matter, and
returns its finding otherwise. A check that could not be made (no loss given, no
BatchNorm in the model) raises `CannotCompare`: a test that looked at nothing must not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crosscheck.auditing.registry import CHECKS
from crosscheck.auditing.results import Finding
from crosscheck.auditing.run import one, subject_of
from crosscheck.errors import CannotCompare

Test = Callable[..., Finding]


def _test(name: str) -> Test:
    check = CHECKS[name]

    def test(
        model: Any, inputs: Any, loss: Any = None, targets: Any = None, **options: Any
    ) -> Finding:
        __tracebackhide__ = True
        finding = one(check, subject_of(model, inputs, loss, targets, **options))
        if finding.status == "skipped":
            raise CannotCompare(f"{name}: {finding.statement}")
        if finding.failed:
            raise AssertionError(f"{name}: {finding.statement}")
        return finding

    test.__name__ = test.__qualname__ = name
    test.__doc__ = check.function.__doc__
    return test


accumulation_equals_the_large_batch = _test("accumulation_equals_the_large_batch")
batchnorm_uses_the_batch_in_training = _test("batchnorm_uses_the_batch_in_training")
dropout_is_on_in_training = _test("dropout_is_on_in_training")
eval_is_repeatable = _test("eval_is_repeatable")
examples_are_independent = _test("examples_are_independent")
gradient_is_clipped_not_the_loss = _test("gradient_is_clipped_not_the_loss")
gradients_match_differences = _test("gradients_match_differences")
gradients_neither_vanish_nor_explode = _test("gradients_neither_vanish_nor_explode")
initial_loss = _test("initial_loss")
inputs_are_normalised = _test("inputs_are_normalised")
inputs_matter = _test("inputs_matter")
labels_look_right = _test("labels_look_right")
loss_depends_on_the_model = _test("loss_depends_on_the_model")
only_these_train = _test("only_these_train")
output_depends_on_input = _test("output_depends_on_input")
outputs_are_in_range = _test("outputs_are_in_range")
overfits_a_few_examples = _test("overfits_a_few_examples")
positions_are_causal = _test("positions_are_causal")
runs_are_deterministic = _test("runs_are_deterministic")
shapes_are_asymmetric = _test("shapes_are_asymmetric")
shapes_hold = _test("shapes_hold")
units_are_alive = _test("units_are_alive")
updates_are_of_a_sane_size = _test("updates_are_of_a_sane_size")
values_are_finite = _test("values_are_finite")
variables_train = _test("variables_train")
weights_are_initialised = _test("weights_are_initialised")

__all__ = sorted(CHECKS)
