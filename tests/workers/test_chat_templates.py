"""Templates that attack: they are stopped, refused, or see nothing of Python."""

from multiprocessing import active_children

import pytest
from transformers import PreTrainedTokenizerFast

from tests.conftest import TEMPLATE, tiny_tokenizer
from workers.chat_templates import template_problem

CHATS = [({"role": "user", "content": "w1 w2"},), ({"role": "user", "content": "w3"},)]


def with_template(text: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    return tokenizer


def test_an_ordinary_template_has_no_problem() -> None:
    assert template_problem(with_template(TEMPLATE), CHATS) is None
    assert template_problem(with_template(TEMPLATE), []) is None


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{{ 9 ** (9 ** 10) }}",
        "{% macro f() %}{% for i in range(99999) %}{{ f() }}{% endfor %}{% endmacro %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i * j %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(text: str) -> None:
    before = active_children()
    problem = template_problem(with_template(text), CHATS, seconds=0.5)
    assert problem == "a chat template must render 2 prompts in 1 s, but the base's does not end."
    assert set(active_children()) <= set(before)


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 10 ** 11 }}",
        "{{ 'x' * 17000000 }}",
        "{% set x = namespace(t='ab') %}" + "{% set x.t = x.t * 9 %}" * 12,
    ],
)
def test_a_template_that_takes_all_memory_is_refused(text: str) -> None:
    problem = template_problem(with_template(text), CHATS)
    assert problem == "a chat template must render a prompt in a gigabyte, but the base's takes more."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError|UndefinedError"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% include '/etc/passwd' %}", "TypeError|TemplateError|no loader"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ messages[0].nothing.more }}", "UndefinedError"),
    ],
)
def test_a_template_that_fails_is_refused_with_the_reason(text: str, reason: str) -> None:
    problem = template_problem(with_template(text), CHATS)
    assert problem is not None
    assert problem.startswith("the base's chat template must render every chat, but: ")
    assert any(part in problem for part in reason.split("|")), problem
