"""Handles, cases, verdicts: the engine on small exercises made for these tests."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from autograder.child.protocol import Items, Parameter, Seed
from autograder.engine.callers import MEND_FIRST, charge, names_behind, names_in
from autograder.engine.exercise import Assignment, Exercise, Rng, seed_for
from autograder.engine.expect import Mismatch, expect, fail, same
from autograder.engine.guards import DETACHED, DEVICE, DTYPE, MUTATES, guard
from autograder.engine.handle import Conversation, Handle, Local, StudentError
from autograder.engine.judge import ExerciseResult, judge
from autograder.engine.notebook import as_html, check, points_so_far, ready
from autograder.engine.references import remembered
from autograder.engine.shortcuts import shortcuts_in
from autograder.grader.repair import source_behind


def handle_on(name: str = "f", **namespace) -> Handle:
    return Handle(Conversation(Local(namespace)), name)


def scaled(points: float = 4, **more) -> Exercise:
    """An exercise in miniature: `scaled(x)` is 3·x."""
    assignment = Assignment("00-test", "test", "00_test", {"why": "Why three"})
    exercise = assignment.exercise("scaled", points=points, **more)

    @exercise.case("multiplies by three")
    def _(student, rng):
        x = rng.normal(5)
        expect(student(x)).close_to(3 * x)

    @exercise.case("keeps zero at zero")
    def _(student, rng):
        expect(student(torch.zeros(2, dtype=torch.float64))).close_to(torch.zeros(2).double())

    @exercise.hidden("huge inputs", hint="Try inputs of 1e30.")
    def _(student, rng):
        expect(student(torch.full((2,), 1e30).double())).close_to(torch.full((2,), 3e30).double())

    guard(exercise, lambda rng, dtype: (rng.normal(4, dtype=dtype),))

    @exercise.misconception(did="You multiply by two.", causes="It is too small.", see="why")
    def doubles(x):
        return 2 * x

    @exercise.misconception(did="You add three.", causes="Zero moves.", see="why")
    def adds(x):
        return x + 3

    return exercise


def verdict(exercise, answer, **more):
    return judge(exercise, lambda: Local({exercise.name: answer}), **more)


def test_right_answer_earns_everything():
    result = verdict(scaled(), lambda x: x + x + x, hidden=True, secret=b"s")
    assert (result.status, result.points, result.message) == ("right", 4, "")
    assert all(case.passed for case in result.cases)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x * 2.0, "You multiply by two. It is too small. See “Why three”."),
        (lambda x: 3 + x, "You add three. Zero moves. See “Why three”."),
    ],
)
def test_known_mistakes_are_named_alike_with_and_without_hidden_cases(answer, message):
    for hidden in (False, True):
        result = verdict(scaled(), answer, hidden=hidden, secret=b"s")
        assert result.status == "wrong" and result.message == message
        assert result.see == "00_test#why" and result.points < 4


def test_unknown_mistake_shows_the_smallest_failing_case_with_numbers():
    result = verdict(scaled(), lambda x: x * 7)
    assert result.misconception is None
    assert result.message.startswith("multiplies by three: the result: expected ")
    assert "got" in result.message and "at [0]" in result.message and len(result.message) < 200


def test_hidden_case_shows_its_hint_and_nothing_else():
    def small_only(x):
        return torch.where(x.abs() > 1e20, x, 3 * x)

    result = verdict(scaled(), small_only, hidden=True, secret=b"s")
    assert "Try inputs of 1e30." in result.message and "3e+30" not in str(result)


def test_hidden_cases_do_not_run_in_a_notebook():
    assert all(case.visible for case in verdict(scaled(), lambda x: 3 * x).cases)


def test_an_answer_fitted_to_the_shown_inputs_fails_on_others():
    exercise = scaled()
    exercise.redraw()
    shown = Rng(seed_for(exercise, exercise.cases[0], b"")).normal(5)

    def fitted(x):
        return 3 * x if x.shape == shown.shape and torch.equal(x, shown) else 3 * x.abs()

    assert verdict(exercise, fitted).cases[0].passed
    result = verdict(exercise, fitted, hidden=True, secret=b"s")
    assert result.points < 4 and "tried on other inputs, fails" in result.message


def test_a_reference_is_asked_once_for_the_same_arguments():
    asked = []

    @remembered
    def doubled(weights, x):
        asked.append(x)
        return {"y": x * weights["w"]}

    one, x = {"w": torch.tensor([2.0])}, torch.arange(3.0)
    first = doubled(one, x)
    first["y"].zero_()  # what a case does to its answer stays its own
    assert torch.equal(doubled(one, x)["y"], 2 * x) and len(asked) == 1
    others = ({"w": torch.tensor([3.0])}, x), (one, x.double()), (one, x[None]), (one, x + 1e-7)
    for number, other in enumerate(others, start=2):
        assert torch.equal(doubled(*other)["y"], other[1] * other[0]["w"])
        assert len(asked) == number


def test_missing_answer_is_reported_as_missing():
    def stub(x):
        raise NotImplementedError()

    result = verdict(scaled(), stub)
    assert (result.status, result.points) == ("missing", 0)
    assert result.message == "`scaled` is not written yet."


def test_absent_name_is_missing_too():
    result = judge(scaled(), lambda: Local({}))
    assert result.status == "missing"


def test_students_error_names_kind_text_and_line():
    def broken(x):
        return x @ torch.ones(3, dtype=x.dtype)

    result = verdict(scaled(), broken)
    assert "stopped with RuntimeError" in result.message
    assert "in the line `return x @ torch.ones(3, dtype=x.dtype)`" in result.message


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, RecursionError, MemoryError])
def test_any_exception_is_an_outcome(kind):
    def raises(x):
        raise kind("gone")

    result = verdict(scaled(), raises)
    assert result.points == 0 and kind.__name__ in result.message


def test_guards_earn_only_beside_right_values():
    zeros = verdict(scaled(), lambda x: 0 * x)
    assert zeros.points < 4 * 2 / 6  # the case of zero passes, no guard is paid
    assert any(case.passed and case.name == "inputs are left as they were" for case in zeros.cases)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: (3 * x).detach(), DETACHED),
        (lambda x: (3 * x).float(), DTYPE),
        (lambda x: (3 * x).cpu(), DEVICE["moved"]),
        (lambda x: x * torch.full((4,), 3.0), DEVICE["mixed"]),
        (lambda x: torch.tensor(3 * x.detach().numpy()), DETACHED),
    ],
)
def test_each_guard_has_its_sentence(answer, message):
    exercise = scaled()
    exercise.cases = [spec for spec in exercise.cases if spec.guard]
    result = verdict(exercise, answer)
    assert message in [case.message for case in result.cases]


class Reader(nn.Module):
    """A GRU, and a method that makes its first state on the device or on the CPU."""

    def __init__(self, on_cpu: bool = False):
        super().__init__()
        self.on_cpu, self.gru, self.cell = on_cpu, nn.GRU(3, 4, batch_first=True), nn.GRUCell(3, 4)

    def forward(self, x):
        return self.cell(x[:, 0], self.gru(x)[1][0]) + (torch.ones(4) if self.on_cpu else 0)

    def start(self, x):
        return self.gru(x, torch.zeros(1, 2, 4, device=None if self.on_cpu else x.device))[0]


@pytest.mark.parametrize("method", [None, "start"])
def test_fake_device_follows_a_gru_and_a_method_of_a_class(method):
    handle = handle_on("Reader", Reader=Reader)
    handle = handle.method(method) if method else handle
    x = torch.randn(2, 5, 3)
    assert handle.on_fake_device(x, build=(False,)) is None
    assert handle.on_fake_device(x, build=(True,)) == "mixed"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.masked_fill(torch.ones(4) > 0, 0.0), "mixed"),  # a mask of the CPU's
        (lambda x: torch.where(torch.ones(4) > 0, x, 0.0), "mixed"),
        (lambda x: nn.functional.cross_entropy(x[None], torch.zeros(1).long()), "mixed"),
        (lambda x: torch.cat([x, torch.zeros(1)]), "mixed"),
        (lambda x: torch.zeros(4)[x.argsort()], "mixed"),
        (lambda x: x.cpu() * 2, "moved"),
        (lambda x: torch.zeros(4) + 1, "moved"),
        (lambda x: x.detach().numpy(), "numpy"),
        (lambda x: x[torch.tensor([0, 2])], None),  # a real GPU takes indices of the CPU's
        (lambda x: x * torch.tensor(2.0), None),  # and a single number
        (lambda x: x * x.max().item(), None),
        (lambda x: x + torch.ones(4).to(x.device), None),
        (lambda x: torch.zeros(4, device=x.device).copy_(x) + x.new_ones(4), None),
        (lambda x: x.clone().mul_(2).t().unsqueeze(0).expand(3, 4).sum(0), None),
        (lambda x: x.double().sort().values.cumsum(0), None),
        (lambda x: x[x > 0].sum() if bool((x > 0).any()) else x.sum(), None),
    ],
)
def test_the_made_up_device_complains_where_a_real_one_would(function, reason):
    x = torch.tensor([0.5, -1.0, 2.0, 0.0])
    assert handle_on(f=function).on_fake_device(x) == reason


def test_what_a_function_changes_on_the_device_stays_there():
    """In-place operations give back the tensor itself, also through a view."""

    def function(x):
        y = torch.zeros(4, device=x.device)
        z = y.add_(1)
        y.view(2, 2)[0].fill_(5)
        assert z is y and y.tolist() == [5, 5, 1, 1]
        return x * y

    assert handle_on(f=function).on_fake_device(torch.ones(4)) is None


def test_mutation_is_seen_even_where_the_values_are_right():
    def in_place(x):
        y = 3 * x
        with torch.no_grad():
            x.zero_()
        return y

    assert MUTATES in verdict(scaled(), in_place).message


def test_forbidden_function_is_seen_at_work_through_any_name():
    exercise = scaled(forbidden=("mul",))
    hidden_in = getattr(torch, "m" + "ul")
    result = verdict(exercise, lambda x: hidden_in(x, 3))
    assert (result.status, result.points) == ("forbidden", 0) and "`mul`" in result.message


def test_largest_tensor_on_the_way_is_seen():
    def outer(x):
        return (x[:, None] * x).sum(dim=0)

    def view(x):
        return x.expand(9, 7)[0] * x.sum()  # 63 entries, all of them in x

    x = torch.randn(7).double()
    assert handle_on(f=outer).largest(x) == 49
    assert handle_on(f=view).largest(x) == 7


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("y = F.softmax(x)", ("softmax",)),
        ("from torch.nn import LSTM", ("LSTM",)),
        ("getattr(nn, 'LSTM')(3, 4)", ("LSTM",)),
        ("def softmax(x):\n    return x.exp()", ()),
        ("class LSTM(nn.Module):\n    def go(self): return self.softmax", ()),
        ("this is not python", ()),
    ],
)
def test_scan_finds_shortcuts_and_leaves_own_names_alone(source, found):
    assert shortcuts_in(source, ("softmax", "LSTM")) == found


def test_mistake_named_by_a_property_wins():
    exercise = scaled()

    @exercise.case("proof")
    def _(student, rng):
        fail("it adds", mistake="adds")

    assert verdict(exercise, lambda x: 3 * x).misconception == "adds"


def test_mistake_that_passes_where_the_student_fails_is_no_explanation():
    exercise = scaled()
    result = verdict(exercise, lambda x: x * 2 if x.abs().sum() else x + 1)
    assert result.misconception is None


# --- the handle's verbs -------------------------------------------------------------------------


def test_vjp_gives_gradients_of_inputs():
    x, w = torch.randn(3, 4).double(), torch.randn(4, 2).double()
    cotangent = torch.randn(3, 2).double()
    pulled = handle_on(f=torch.matmul).vjp(x, w, cotangent=cotangent, wrt=(0, 1))
    assert same(pulled.inputs, (cotangent @ w.T, x.T @ cotangent))


def test_vjp_says_when_no_gradient_flows():
    with pytest.raises(StudentError) as caught:
        handle_on(f=lambda x: x.detach()).vjp(torch.ones(2), cotangent=torch.ones(2), wrt=(0,))
    assert caught.value.kind == "NoGradient"


def test_module_is_built_loaded_called_and_differentiated():
    module = handle_on("Linear", Linear=nn.Linear).hold(3, 2)
    assert module.shapes() == {"weight": (2, 3), "bias": (2,)}
    weights = Rng(0).like(module.shapes())
    module.load(weights).eval()
    x = torch.randn(5, 3).double()
    assert same(module(x), x @ weights["weight"].T + weights["bias"])
    cotangent = torch.randn(5, 2).double()
    pulled = module.vjp(x, cotangent=cotangent, wrt=(0,))
    assert same(pulled.parameters["weight"], cotangent.T @ x)
    assert same(pulled.inputs[0], cotangent @ weights["weight"])
    assert module.trainable() == {"weight": True, "bias": True}


def test_state_is_held_and_passed_by_reference():
    class Counter:
        def __init__(self):
            self.count = 0

        def add(self, n):
            self.count += n
            return self.count

    counter = handle_on("Counter", Counter=Counter).hold()
    add = counter.method("add")
    assert (add(2), add(3), counter.get("count")) == (2, 5, 5)


def test_a_context_manager_surrounds_a_call_and_is_left_again_whatever_happens():
    @contextlib.contextmanager
    def halved(layer):
        layer.weight.data.div_(2)
        try:
            yield
        finally:
            layer.weight.data.mul_(2)

    make = handle_on("halved", halved=halved)
    layer = make.peer("rnn2gpt.transformer:LayerNorm", 3).eval()
    x = torch.tensor([[-1.0, 0.0, 1.0]])
    plain = layer(x)
    assert same(layer.inside(make.hold(layer), x), plain / 2)
    assert same(layer(x), plain)
    with pytest.raises(StudentError, match="normalized_shape"):
        layer.inside(make.hold(layer), torch.ones(2, 4))
    assert same(layer(x), plain)
    with pytest.raises(StudentError, match="context manager"):
        layer.inside(make.keep(3), x)


def test_a_context_manager_that_swallows_the_error_leaves_no_result():
    quiet = handle_on(
        "quiet", quiet=lambda: contextlib.suppress(ZeroDivisionError), invert=lambda x: 1 / x
    )
    invert = Handle(quiet._conversation, "invert")
    assert invert.inside(quiet.hold(), 2) == 0.5
    assert invert.inside(quiet.hold(), 0) is None


def test_parameters_come_back_with_gradients_and_the_old_gradient():
    def halve(parameters):
        for p in parameters:
            p.grad.mul_(0.5)

    def replace(parameters):
        for p in parameters:
            p.grad = p.grad * 0.5

    marker = Parameter(torch.ones(2), torch.full((2,), 4.0))
    for function, before in ((halve, 2.0), (replace, 4.0)):
        after = handle_on(f=function).after(Items([marker])).args[0].items[0]
        assert same(after.grad, torch.full((2,), 2.0))
        assert same(after.grad_before, torch.full((2,), before))


def test_generator_is_the_only_source_of_chance():
    draw = handle_on(f=lambda generator: torch.rand(3, generator=generator))
    assert same(draw(Seed(5)), draw(Seed(5))) and not same(draw(Seed(5)), draw(Seed(6)))
    kept = draw.keep(Seed(5))
    assert not same(draw(kept), draw(kept))


def test_callback_runs_on_the_checks_side():
    seen = []

    def score(x):
        seen.append(x)
        return 10 * x

    assert handle_on(f=lambda g: g(2) + g(3))(score) == 50 and seen == [2, 3]


def test_objects_that_claim_equality_are_refused():
    class Yes(float):
        def __eq__(self, other):
            return True

        __hash__ = float.__hash__

    assert type(handle_on(f=lambda: Yes(2))()) is float
    with pytest.raises(StudentError, match="cannot be checked"):
        handle_on(f=lambda: object())()


def test_peer_builds_only_the_packages_own_classes():
    handle = handle_on(f=len)
    with pytest.raises(StudentError, match="not a class that a check may build"):
        handle.peer("os:getcwd").get("cwd")


# --- expectations, seeds, the notebook ----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "right", "message"),
    [
        (torch.ones(3), torch.ones(2), r"expected shape \(2,\), got \(3,\)"),
        (None, torch.ones(2), "expected a tensor, got None"),
        ([1, 2], (1, 2, 3), "expected 3 values"),
        (torch.tensor([0.0, 5.0]), torch.tensor([0.0, 4.0]), r"expected 4, got 5 at \[1\]"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "got nan"),
        (3.0, 2.0, "expected 2, got 3"),
        ("a", "b", "expected 'b', got 'a'"),
    ],
)
def test_mismatches_are_worded_for_a_student(value, right, message):
    with pytest.raises(Mismatch, match=message):
        expect(value).close_to(right)


@pytest.mark.parametrize("value", [2.0, torch.tensor(2.0), torch.tensor([2.0]).squeeze()])
def test_scalar_may_be_a_float_or_a_tensor(value):
    expect(value).close_to(2.0)
    expect(value).close_to(torch.tensor(2.0))


def test_hidden_inputs_depend_on_the_secret_and_visible_ones_do_not():
    exercise = scaled()
    visible, hidden = exercise.cases[0], exercise.cases[2]
    assert seed_for(exercise, visible, b"a") == seed_for(exercise, visible, b"b")
    assert seed_for(exercise, hidden, b"a") != seed_for(exercise, hidden, b"b")


def test_notebook_shows_a_card_and_a_number(capsys):
    exercise = scaled()
    wrong = check(exercise, lambda x: "<script>", {})
    assert repr(wrong) == f"{float(wrong):g}" and "<script>" not in wrong._repr_html_()
    assert not ready(exercise) and "`scaled`" in capsys.readouterr().out
    right = check(exercise, lambda x: 3 * x, {})
    assert float(right) == 4 and "4 of 4" in as_html(right.result) and ready(exercise)
    assert points_so_far(exercise).startswith("Points so far: 4 of 4")


def test_misconception_must_point_at_a_declared_section():
    with pytest.raises(ValueError, match="declares no section 'nowhere'"):
        scaled().misconception(did="", causes="", see="nowhere")


def test_two_cases_of_one_name_are_refused():
    with pytest.raises(ValueError, match="already has a case"):
        scaled().case("multiplies by three")(lambda student, rng: None)


def test_likeness_does_not_mind_the_order_of_a_dictionary() -> None:
    table = {(1, 2): 3, (0, 9): torch.ones(2)}
    turned = dict(reversed(table.items()))
    assert same([table, (table,)], [turned, (turned,)])
    assert not same(table, turned | {(1, 2): 4})
    assert not same([1, 2], [2, 1])


# --- a failure is charged to the helper that caused it ------------------------------


def doubled_and_more() -> Assignment:
    """Two exercises, the second of which is written with the first."""
    assignment = Assignment("00-callers", "callers", "00_callers", {"why": "Why"})
    for name, factor in (("double", 2), ("quadruple", 4)):

        def case(student, rng, factor=factor):
            x = rng.normal(5)
            expect(student(x)).close_to(factor * x)

        assignment.exercise(name, points=1).case("multiplies")(case)
    return assignment


CALLERS = """
def double(x):
    {double}

def twice(x):
    return double(double(x))

def quadruple(x):
    return {quadruple}
"""


@pytest.mark.parametrize(
    ("double", "quadruple", "charged"),
    [
        ("return 3 * x", "double(double(x))", True),
        ("return 3 * x", "twice(x)", True),  # through a helper of the student's own
        ("raise NotImplementedError", "twice(x)", True),
        ("return 3 * x", "5 * x", False),  # calls nothing
        ("return 3 * x", "(lambda double: 5 * double)(x)", False),  # a variable of that name
        ("return 2 * x", "double(x)", False),  # the helper is right
    ],
)
def test_a_wrong_helper_is_named_where_its_caller_fails(double, quadruple, charged):
    first, second = doubled_and_more().exercises
    source = CALLERS.format(double=double, quadruple=quadruple)
    namespace = {"__name__": "__main__"}
    exec(source, namespace)
    results = [float(check(e, namespace[e.name], {})) for e in (first, second)]
    verdict_ = check(second, namespace["quadruple"], {}).result
    assert results[1] == verdict_.points == 0
    lead = MEND_FIRST.format(helper="double")
    assert verdict_.message.startswith(lead) is charged
    assert names_behind(namespace["quadruple"]) & {"double"} == names_in(
        source_behind("quadruple", [source])
    ) & {"double"}  # the notebook and the grader see the same


def test_a_named_mistake_needs_no_other_reason():
    earlier = [ExerciseResult("double", 0, 1, "wrong")]
    named = ExerciseResult("quadruple", 0, 1, "wrong", "You add.", "adds")
    assert charge(named, {"double"}, earlier) is named
    right = ExerciseResult("quadruple", 1, 1, "right")
    assert charge(right, {"double"}, earlier) is right


# --- trips between a check and an object --------------------------------------------------------


class Counted(Local):
    """A worker in this process; remembers what each trip carried."""

    def __init__(self, namespace):
        super().__init__(namespace)
        self.trips = []

    def send(self, requests, callbacks):
        self.trips.append([request["op"] for request in requests])
        return super().send(requests, callbacks)


def test_what_tells_nothing_travels_with_the_next_question():
    there = Counted({"f": nn.Linear})
    module = Handle(Conversation(there), "f").hold(3, 2)
    weights = Rng(0).like(module.shapes())
    output = module.load(weights).eval()(torch.ones(1, 3).double())
    expect(output).close_to(weights["weight"].sum(1)[None] + weights["bias"])
    assert there.trips == [["begin", "call"], ["load", "mode", "call"]]


def test_shapes_are_asked_again_once_something_was_said():
    there = Counted({"f": nn.Linear})
    module = Handle(Conversation(there), "f").hold(3, 2)
    module.method("requires_grad_").hold(False)
    assert module.shapes() == {"weight": (2, 3), "bias": (2,)}
    assert there.trips == [["begin", "call"], ["call"], ["shapes"]]


def test_what_fails_on_the_way_to_a_question_is_told_in_its_place():
    conversation = Conversation(Local({"f": nn.Linear}))
    module = Handle(conversation, "f").hold(3, 2).load({"weight": torch.ones(2, 3)})
    with pytest.raises(StudentError, match="missing parameters"):
        module(torch.ones(1, 3))
    assert [step.verb for step in conversation.steps] == ["call", "load"]


def test_a_case_that_ends_without_a_question_still_sends_what_waits():
    exercise = Assignment("00-test", "test", "00_test", {}).exercise("made", points=1)

    @exercise.case("takes weights")
    def _(student, rng):
        student.hold(3, 2).load({"weight": torch.ones(2, 3)})

    assert "missing parameters" in verdict(exercise, nn.Linear).cases[0].message


def test_a_cotangent_may_be_made_from_the_result():
    pulled = handle_on(f=lambda x: 3 * x).vjp(
        torch.ones(2), cotangent=lambda value: 2 * value, wrt=(0,)
    )
    assert torch.equal(pulled.inputs[0], torch.full((2,), 18.0))
