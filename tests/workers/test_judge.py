"""The judge against a real server in all its moods."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from workers.errors import TrialError
from workers.judge import Judge
from workers.marks import Mark
from workers.questions import Generated
from workers.scorers import make_scorer
from workers.second_stage import SecondStage
from workers.suites import Item

RUBRIC = "A good answer is right and kind."


def item(number: int, **changes: Any) -> Item:
    return Item(id=f"i{number}", prompt=f"w{number} w1 w2", lang="en", **changes)


def asked(count: int, **changes: Any) -> list[tuple[Item, list[Generated]]]:
    return [(item(i, **changes), [Generated(text=f"w{i} w{i + 1} w3", truncated=False)]) for i in range(count)]


def judge(server: Any, **changes: Any) -> Judge:
    options = {"url": server.url, "model": "tiny", "rubric": RUBRIC, "retries": 1, "backoff": 0.02, "timeout": 5.0}
    made = make_scorer("judge", options | changes)
    assert isinstance(made, Judge)
    return made


def verdicts(marks: list[Mark]) -> list[str | None]:
    return [m.verdict for m in marks]


def test_grades_are_mapped_from_their_scale_to_one(judge_server: Any) -> None:
    marks = judge(judge_server).mark_all(asked(6), SecondStage())
    assert [m.value for m in marks] == [(float(m.verdict or "") - 1) / 9 for m in marks]
    assert len(judge_server.asked) == 6
    first = judge_server.asked[0]
    assert (first["temperature"], first["response_format"]) == (0, {"type": "json_object"})
    text = first["messages"][0]["content"]
    assert RUBRIC in text
    assert "<answer>\nw" in text


def test_a_win_rate_asks_in_both_orders(judge_server: Any) -> None:
    marks = judge(judge_server, mode="win_rate").mark_all(asked(5, meta={"reference": "w9 w8"}), SecondStage())
    assert len(judge_server.asked) == 10
    assert {m.value for m in marks} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert all(
        m.verdict == {0.5: "tie"}.get(m.value or 0.0, "won" if (m.value or 0.0) > 0.5 else "lost") for m in marks
    )


def test_a_judge_that_likes_whoever_stands_first_gives_a_tie(judge_server: Any) -> None:
    judge_server.always = lambda h: h.say('{"winner": "A"}')
    marks = judge(judge_server, mode="win_rate").mark_all(asked(3, meta={"reference": "w9"}), SecondStage())
    assert [(m.value, m.parts["order_bias"]) for m in marks] == [(0.5, 1.0)] * 3


def test_a_reference_may_come_from_a_file(judge_server: Any, tmp_path: Path) -> None:
    path = tmp_path / "references.jsonl"
    path.write_text('{"id": "i0", "reference": "w7 w7"}\n')
    scorer = judge(judge_server, mode="win_rate", reference=str(path))
    scorer.prepare()
    assert scorer.check(item(0)) is None
    assert "meta.reference" in (scorer.check(item(1)) or "")
    scorer.mark_all(asked(1), SecondStage())
    assert "w7 w7" in judge_server.asked[0]["messages"][0]["content"]


def test_what_was_judged_before_is_not_asked_again(judge_server: Any) -> None:
    stage = SecondStage()
    first = judge(judge_server).mark_all(asked(4), stage)
    kept = stage.new_verdicts()
    assert len(kept) == 4
    assert stage.new_verdicts() == {}
    again = judge(judge_server, url="http://127.0.0.1:9/elsewhere").mark_all(
        asked(4), SecondStage(verdicts=json.loads(json.dumps(kept)))
    )
    assert again == first
    assert len(judge_server.asked) == 4


@pytest.mark.parametrize("change", [{"model": "other"}, {"revision": "2"}, {"rubric": "Another."}])
def test_another_judge_knows_nothing_of_it(judge_server: Any, change: dict[str, str]) -> None:
    stage = SecondStage()
    judge(judge_server).mark_all(asked(2), stage)
    judge(judge_server, **change).mark_all(asked(2), stage)
    assert len(judge_server.asked) == 4


def test_the_same_answer_twice_is_one_question(judge_server: Any) -> None:
    judge(judge_server).mark_all(asked(1) * 3, SecondStage())
    assert len(judge_server.asked) == 1


def test_an_answer_that_is_none_is_worth_nothing_and_costs_no_call(judge_server: Any) -> None:
    texts = ["", "w1 w1 w1 w1", "w0 w1 w2", "приветствую вас"]
    marks = judge(judge_server).mark_all(
        [(item(0), [Generated(text=t, truncated=False)]) for t in texts], SecondStage()
    )
    assert [(m.value, m.verdict) for m in marks] == [(0.0, "invalid")] * 4
    assert judge_server.asked == []


def html(h: Any) -> None:
    h.send(200, b"<html><body>Please log in</body></html>", "text/html")


def broken(h: Any) -> None:
    h.send(200, b'{"choices": [{"message": {"content": "{\\"gra')


def huge(h: Any) -> None:
    h.send(200, b" " * (10 << 20))


def empty(h: Any) -> None:
    h.send(200, b"")


def silent(h: Any) -> None:
    h.say("")


def chatty(h: Any) -> None:
    h.say("I would rather not say.")


def outside(h: Any) -> None:
    h.say('{"grade": 11}')


UNUSABLE = {
    "html": (html, "no chat completion: '<html>"),
    "broken": (broken, "no chat completion"),
    "huge": (huge, "larger than 1024 KiB"),
    "empty": (empty, "no chat completion"),
    "silent": (silent, "its answer is empty"),
    "chatty": (chatty, "no verdict: 'I would rather not say.'"),
    "outside": (outside, "no verdict"),
}


@pytest.mark.parametrize(("mood", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_reply_that_is_no_verdict_leaves_the_item_unscored(
    judge_server: Any, mood: Callable[[Any], None], reason: str
) -> None:
    judge_server.moods = [mood]
    marks = judge(judge_server, concurrency=1).mark_all(asked(4), SecondStage())
    (unscored,) = [m for m in marks if m.value is None]
    assert reason in (unscored.verdict or "")
    assert sum(m.value is not None for m in marks) == 3


@pytest.mark.parametrize("mood", [html, huge, chatty], ids=["html", "huge", "chatty"])
def test_a_judge_that_gives_no_verdicts_is_soon_left(judge_server: Any, mood: Callable[[Any], None]) -> None:
    judge_server.always = mood
    with pytest.raises(TrialError, match=r"at most 2% of the questions .* tiny at http://127.0.0.1:\d+/v1 gave none"):
        judge(judge_server, concurrency=2).mark_all(asked(60), SecondStage())
    assert len(judge_server.asked) < 12


def test_verdicts_from_before_it_broke_are_kept(judge_server: Any) -> None:
    stage = SecondStage()
    scorer = judge(judge_server, concurrency=1)
    scorer.mark_all(asked(3), stage)
    judge_server.always = html
    with pytest.raises(TrialError):
        scorer.mark_all(asked(60), stage)
    assert len(stage.new_verdicts()) == 3


def test_a_judge_that_is_down_is_tried_again_and_then_named(free_port: int) -> None:
    made = make_scorer(
        "judge",
        {"url": f"http://127.0.0.1:{free_port}/v1", "model": "m", "rubric": "r", "retries": 2, "backoff": 0.01},
    )
    assert isinstance(made, Judge)
    with pytest.raises(TrialError, match="gave none to 5 of 20: no reply .ConnectError"):
        made.mark_all(asked(20), SecondStage())


@pytest.mark.parametrize("drip", [False, True])
def test_a_judge_that_is_slow_is_not_waited_for(judge_server: Any, drip: bool) -> None:
    def slow(h: Any) -> None:
        if drip:  # a byte now and then: no single read is late
            h.send_response(200)
            h.send_header("Content-Length", "1000")
            h.end_headers()
            for _ in range(40):
                h.wfile.write(b" ")
                h.wfile.flush()
                time.sleep(0.05)
        else:
            time.sleep(1)
        h.close_connection = True

    judge_server.always = slow
    marks = judge(judge_server, timeout=0.2, retries=1).mark_all(asked(1), SecondStage())
    assert "within 0.2 s" in (marks[0].verdict or "")
    assert len(judge_server.asked) == 2


def test_too_many_requests_waits_as_told(judge_server: Any) -> None:
    judge_server.moods = [lambda h: h.send(429, b"{}", Retry_After="1")]
    (mark,) = judge(judge_server).mark_all(asked(1), SecondStage())
    assert mark.value is not None
    assert judge_server.times[1] - judge_server.times[0] >= 1.0


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_failure_that_may_pass_is_tried_again(judge_server: Any, status: int) -> None:
    judge_server.moods = [lambda h: h.send(status, b"busy", "text/plain")]
    (mark,) = judge(judge_server).mark_all(asked(1), SecondStage())
    assert mark.value is not None
    assert len(judge_server.asked) == 2


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404])
def test_a_judge_that_refuses_us_fails_the_trial_at_once(judge_server: Any, status: int) -> None:
    judge_server.always = lambda h: h.send(
        status, b'{"error": "key sk-secret is wrong"}', Location="http://127.0.0.1:1"
    )
    with pytest.raises(TrialError, match=f"must take our requests, but .* replied {status}") as caught:
        judge(judge_server, concurrency=1).mark_all(asked(10), SecondStage())
    assert "sk-secret" not in str(caught.value)
    assert len(judge_server.asked) == 1


def test_the_budget_is_what_a_worker_may_call_in_all(judge_server: Any) -> None:
    stage = SecondStage()
    scorer = judge(judge_server, budget=5)
    scorer.mark_all(asked(4), stage)
    with pytest.raises(TrialError, match="may be called 5 times .budget., and all are spent"):
        scorer.mark_all(asked(8), stage)
    assert len(judge_server.asked) == 5
    assert len(scorer.mark_all(asked(4), stage)) == 4, "what is known costs nothing"


def test_the_key_is_sent_and_stands_nowhere_else(judge_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    scorer, stage = judge(judge_server, key_from="JUDGE_KEY"), SecondStage()
    marks = scorer.mark_all(asked(1), stage)
    assert judge_server.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert "sk-very-secret" not in repr((scorer, marks, stage.new_verdicts(), judge_server.asked))


@pytest.mark.parametrize("held", [None, "", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_is_none_is_refused_before_the_study(monkeypatch: pytest.MonkeyPatch, held: str | None) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if held is not None:
        monkeypatch.setenv("JUDGE_KEY", held)
    made = make_scorer("judge", {"url": "http://x/v1", "model": "m", "rubric": "r", "key_from": "JUDGE_KEY"})
    assert isinstance(made, Judge)
    with pytest.raises(InputError, match="the environment variable JUDGE_KEY must hold the judge's API key") as caught:
        made.prepare()
    assert not held or held not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost:8000"}, "url must be that of an endpoint"),
        ({"url": "http://me:pass@x/v1"}, "url must hold no password"),
        ({"scale": [5, 1]}, r"scale must be \[low, high\]"),
        ({"rubric": None}, "a judge that grades needs a rubric"),
        ({"template": "Is it good? {response}"}, "template must have {prompt} in it for mode grade"),
        ({"mode": "win_rate", "template": "{prompt} {response}"}, "template must have {first}, {second} in it"),
        ({"budget": 0}, "budget must be greater than 0, but got 0"),
        ({"api_key": "sk"}, "the scorer judge takes .*key_from.*, but got api_key"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"url": "http://x/v1", "model": "m", "rubric": "r"} | options
    with pytest.raises(InputError, match=message):
        make_scorer("judge", {k: v for k, v in given.items() if v is not None})


def test_what_is_sent_can_be_changed_and_is_another_question(judge_server: Any) -> None:
    stage = SecondStage()
    judge(judge_server).mark_all(asked(1), stage)
    judge(judge_server, request={"max_tokens": None, "max_completion_tokens": 9}).mark_all(asked(1), stage)
    sent = judge_server.asked[1]
    assert "max_tokens" not in sent
    assert sent["max_completion_tokens"] == 9


@given(st.text() | st.text('{}[]"grade:10,\\n ', max_size=60))
def test_whatever_a_judge_writes_is_a_verdict_or_none(text: str) -> None:
    scorer = make_scorer("judge", {"url": "http://x/v1", "model": "m", "rubric": "r"})
    assert isinstance(scorer, Judge)
    verdict = scorer._parse(text)
    assert verdict is None or 1 <= verdict["grade"] <= 10
    assert scorer._parse(text + ' so: ```json\n{"reason": "{x}", "grade": 3.5}\n```') == {"grade": 3.5}


def test_a_verdict_is_found_in_endless_nesting() -> None:
    scorer = make_scorer("judge", {"url": "http://x/v1", "model": "m", "rubric": "r"})
    assert isinstance(scorer, Judge)
    assert scorer._parse('{"a":' * 100_000) is None


def test_braces_in_an_answer_are_left_alone(judge_server: Any) -> None:
    text = "use {rubric} and {prompt} here"
    judge(judge_server).mark_all([(item(0), [Generated(text=text, truncated=False)])], SecondStage())
    assert text in judge_server.asked[0]["messages"][0]["content"]
