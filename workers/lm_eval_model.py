"""lm-evaluation-harness on our engine: its instances are our questions, our answers its responses.

Only this file and :mod:`workers.lm_eval_suites` know lm-evaluation-harness, and load it where a study asks for it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedTokenizerBase

from search_spaces.errors import InputError
from workers.engine import Engine, Request
from workers.prompts import prompt_text, to_requests
from workers.questions import Answer, Continuation, Generated, Generation, LogLikelihood, Question, WholeText, joined

Response = tuple[float, bool] | float | str

_MOST_TOKENS = 256
"""Of a generation whose task names no limit; lm-evaluation-harness's own default."""

_GREEDY = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
"""Generation options that change nothing where decoding is greedy, or that we obey."""


def question_of(instance: Instance) -> Question:
    """What an instance asks.

    Raises: InputError for one that samples, decodes otherwise than greedily, or shows more than text.
    """
    arguments = instance.args
    if instance.request_type == "loglikelihood_rolling":
        return WholeText(text=arguments[0])
    if len(arguments) != 2:
        raise InputError(f"lm-eval tasks must be of text alone, but {instance.task_name} shows more.")
    if instance.request_type == "loglikelihood":
        return Continuation(prompt=arguments[0], text=arguments[1], joined=True)
    return _generation(*arguments, task=instance.task_name or "a task")


def response_to(instance: Instance, answer: Answer) -> Response:
    """The answer in the form in which the instance's task expects it."""
    if isinstance(answer, Generated):
        return answer.text
    return answer.total if instance.request_type == "loglikelihood_rolling" else (answer.total, answer.greedy)


class EngineLM(LM):  # type: ignore[misc]  # lm-eval carries no types
    """A live engine as lm-evaluation-harness's model, for ``lm_eval.evaluate(EngineLM(...), tasks)``.

    What does not fit into the model's context is an InputError here, never cut: a study counts it as unscored.

    Args:
        context: tokens that the engine's model can attend to.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        super().__init__()
        self._engine = engine
        self._tokenizer = tokenizer
        self._context = context

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer comes from."""
        return str(self._tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as one text; one that ends with the assistant's words is to be gone on with."""
        del add_generation_prompt  # the last role says it
        return prompt_text(self._tokenizer, tuple(chat_history))[0]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[Response]:
        """(log-likelihood in nats, would greedy decoding write it) of each continuation."""
        return self._respond(requests)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[Response]:
        """Log-likelihood in nats of each text."""
        return self._respond(requests)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[Response]:
        """What greedy decoding writes, up to a stop string."""
        return self._respond(requests)

    def _respond(self, instances: Sequence[Instance]) -> list[Response]:
        asked = [to_requests(self._tokenizer, question_of(i), self._context) for i in instances]
        requests = tuple(r for question in asked for r in question)
        longest = max((r.length for r in requests), default=0)
        if longest > self._context:
            raise InputError(
                f"a request must fit into the model's context of {self._context} tokens, but one has {longest}."
            )
        answers: Iterator[Answer] = iter(self._answers(requests))
        return [
            response_to(i, joined([next(answers) for _ in question]))
            for i, question in zip(instances, asked, strict=True)
        ]

    def _answers(self, requests: tuple[Request, ...]) -> Sequence[LogLikelihood] | Sequence[Generated]:
        if not requests:
            return ()
        return self._engine.loglikelihood(requests) if requests[0].continuation else self._engine.generate(requests)


def _generation(prompt: Any, options: dict[str, Any], *, task: str) -> Generation:
    wanted = dict(normalize_gen_kwargs(options, _MOST_TOKENS))
    unknown = sorted(set(wanted) - _GREEDY)
    if wanted["do_sample"] or unknown:
        found = ", ".join(unknown) or f"do_sample with temperature {wanted.get('temperature')}"
        raise InputError(f"lm-eval tasks must decode greedily, but {task} asks for {found}.")
    stop = tuple(s for s in wanted["until"] if s)
    return Generation(prompt=prompt, max_new_tokens=int(wanted["max_gen_toks"]), stop=stop)
