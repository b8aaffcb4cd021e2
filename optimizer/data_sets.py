"""Published data sets that `mergefront suites import` reads: their columns, and what makes an item of a row.

Nothing of them is copied here: the authors' file is read, and each set keeps its licence. Columns were taken from the
authors' own cards and repositories, which stand with each record.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import InputError

Row = Mapping[str, str]
Item = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row stands: its file's name, its number from 0 on, and what the user says about all of them.

    ``lang`` and ``label`` are empty where the user says nothing.
    """

    file: str
    number: int
    lang: str = ""
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set.

    Attributes:
        columns: that a file must have; of one without a header they are the names of its columns, ``header`` False.
        languages: as its authors name them. scorer: what its authors' metric is, or comes nearest to it.
        convert: an item of our form, or in words why the row is left out.
    """

    name: str
    title: str
    source: str
    licence: str
    languages: str
    scorer: str
    columns: tuple[str, ...]
    convert: Callable[[Row, Place], Item | str]
    header: bool = True


def _harmbench(row: Row, place: Place) -> Item | str:
    if "copyright" in row["FunctionalCategory"]:
        return "copyright behaviours, which are scored by what is reproduced"
    context = row["ContextString"].strip()
    prompt = f"{context}\n\n---\n\n{row['Behavior']}" if context else row["Behavior"]
    meta = {"category": row["SemanticCategory"], "kind": row["FunctionalCategory"]}
    return _request(f"harmbench-{row['BehaviorID']}", prompt, "harmful", place, meta)


def _xstest(row: Row, place: Place) -> Item | str:
    label = {"safe": "benign", "unsafe": "harmful"}.get(row["label"].strip().lower())
    if label is None:
        return f"a label other than safe and unsafe ({row['label']!r})"
    return _request(f"xstest-{row['id']}", row["prompt"], label, place, {"type": row["type"], "focus": row["focus"]})


def _strongreject(row: Row, place: Place) -> Item | str:
    prompt = row["forbidden_prompt"]
    return _request(f"strongreject-{_digest(prompt)}", prompt, "harmful", place, {"category": row["category"]})


def _do_not_answer(row: Row, place: Place) -> Item | str:
    meta = {"area": row["risk_area"], "category": row["types_of_harm"], "harm": row["specific_harms"]}
    return _request(f"dna-{row['id']}", row["question"], "harmful", place, meta)


_AYA = {
    "arabic": "ar",
    "english": "en",
    "filipino": "tl",
    "french": "fr",
    "hindi": "hi",
    "russian": "ru",
    "serbian": "sr",
    "spanish": "es",
}


def _aya(row: Row, place: Place) -> Item | str:
    language = row["language"].strip().lower()
    lang = place.lang or _AYA.get(language) or SHORT.get(language)
    if not lang:
        return f"a language that the data set's card does not name ({row['language']!r})"
    meta = {"category": row["harm_category"], "scope": row["global_or_local"]}
    item = _request(f"aya-{lang}-{_digest(row['prompt'])}", row["prompt"], "harmful", place, meta)
    return item if isinstance(item, str) else item | {"lang": lang}


def _or_bench(row: Row, place: Place) -> Item | str:
    hints = {"toxic": "harmful", "hard": "benign", "80k": "benign"}
    label = place.label or next((label for hint, label in hints.items() if hint in place.file.lower()), "")
    if not label:
        raise InputError(
            "OR-Bench says in its files' names (80k, hard-1k, toxic) which prompts are harmful, but the file is called "
            f"{place.file} (--label harmful or --label benign says it)."
        )
    return _request(f"orbench-{_digest(row['prompt'])}", row["prompt"], label, place, {"category": row["category"]})


_MULTIJAIL = ("en", "zh", "it", "vi", "ar", "ko", "th", "bn", "sw", "jv")


def _multijail(row: Row, place: Place) -> Item | str:
    meta = {"tags": row["tags"], "source": row["source"]}
    group = f"multijail-{row['id']}"
    lang = place.lang
    item = _request(f"{group}-{lang}", row[lang], "harmful", place, meta)
    return item if isinstance(item, str) else item | {"group": group}


def _dolly(row: Row, place: Place) -> Item | str:
    lang = SHORT.get(row["language"], row["language"])
    item = _request(
        f"dolly-{row['id']}-{lang}-{row['script']}", row["inputs"], "", place, {"reference": row["targets"]}
    )
    if isinstance(item, str) or not row["targets"].strip():
        return "rows without an answer"
    return item | {"lang": lang, "target": row["targets"].strip(), "group": f"dolly-{row['id']}"}


def _mgsm(row: Row, place: Place) -> Item | str:
    named = re.search(r"mgsm_([a-z]{2,3})\.", place.file.lower())
    lang = place.lang or (named[1] if named else "")
    if not lang:
        raise InputError(
            f"MGSM says in its files' names (mgsm_de.tsv) which language they are in, but the file is called "
            f"{place.file} (--lang de says it)."
        )
    answer = row["answer"].strip().replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", answer):
        return f"an answer that is no number ({row['answer'][:40]!r})"
    item = _request(f"mgsm-{place.number}-{lang}", row["question"], "", place, {})
    return item if isinstance(item, str) else item | {"lang": lang, "target": answer, "group": f"mgsm-{place.number}"}


def _request(name: str, prompt: str, label: str, place: Place, meta: Mapping[str, str]) -> Item | str:
    """An item in the user's language, else English."""
    if not prompt.strip():
        return "rows without a prompt"
    item: Item = {"id": name, "prompt": prompt.strip(), "lang": place.lang or "en"}
    if label:
        item["label"] = label
    kept = {key: value for key, value in meta.items() if value}
    return item | ({"meta": kept} if kept else {})


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:12]


_CODES = """
arb:ar ara:ar ben:bn ces:cs dan:da deu:de ell:el eng:en fin:fi fra:fr heb:he hin:hi hun:hu ind:id ita:it
jpn:ja jav:jv kor:ko nld:nl nob:no nor:no pes:fa pol:pl por:pt ron:ro rus:ru spa:es srp:sr swa:sw swe:sv
swh:sw tam:ta tel:te tgl:tl tha:th tur:tr ukr:uk urd:ur vie:vi zho:zh
"""
SHORT = {long: short for long, _, short in (pair.partition(":") for pair in _CODES.split())}
"""ISO 639-3 codes as the ISO 639-1 codes that refusal phrases are listed by; other languages keep the longer code."""

_REFUSALS = "`refusal`; better `guard` or `judge`: the authors' classifier reads whether the request was carried out"

_ALL = (
    DataSet(
        name="harmbench",
        title="HarmBench, text behaviours",
        source="https://github.com/centerforaisafety/HarmBench (data/behavior_datasets/harmbench_behaviors_text_*.csv)",
        licence="MIT",
        languages="en",
        scorer=_REFUSALS,
        columns=("Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID"),
        convert=_harmbench,
    ),
    DataSet(
        name="xstest",
        title="XSTest",
        source="https://github.com/paul-rottger/xstest (xstest_prompts.csv)",
        licence="CC BY 4.0",
        languages="en",
        scorer="`refusal`: its figures are refusals of unsafe and of safe prompts, each on its own",
        columns=("id", "prompt", "type", "label", "focus"),
        convert=_xstest,
    ),
    DataSet(
        name="strongreject",
        title="StrongREJECT",
        source="https://github.com/alexandrasouly/strongreject (strongreject_dataset/strongreject_*dataset.csv)",
        licence="MIT",
        languages="en",
        scorer="`judge` with the authors' rubric: a refusal counts 0, else how specific and convincing the help is",
        columns=("category", "forbidden_prompt"),
        convert=_strongreject,
    ),
    DataSet(
        name="do-not-answer",
        title="Do-Not-Answer",
        source="https://huggingface.co/datasets/LibrAI/do-not-answer",
        licence="Apache-2.0",
        languages="en",
        scorer="`guard` or `judge`: many a question has a harmless answer that is no refusal",
        columns=("id", "risk_area", "types_of_harm", "specific_harms", "question"),
        convert=_do_not_answer,
    ),
    DataSet(
        name="aya-redteaming",
        title="Aya Red-teaming",
        source="https://huggingface.co/datasets/CohereForAI/aya_redteaming (aya_*.jsonl)",
        licence="Apache-2.0",
        languages="ar en es fr hi ru sr tl",
        scorer="`judge` or a multilingual `guard`: the share of harmful answers, relative to the base's",
        columns=("prompt", "language", "harm_category", "global_or_local"),
        convert=_aya,
    ),
    DataSet(
        name="or-bench",
        title="OR-Bench",
        source="https://huggingface.co/datasets/bench-llm/or-bench (or-bench-80k.csv, -hard-1k.csv, -toxic.csv)",
        licence="CC BY 4.0",
        languages="en",
        scorer="`refusal`: its figures are refusals of seemingly toxic prompts and of toxic ones",
        columns=("prompt", "category"),
        convert=_or_bench,
    ),
    DataSet(
        name="multijail",
        title="MultiJail",
        source="https://huggingface.co/datasets/DAMO-NLP-SG/MultiJail (MultiJail.csv)",
        licence="MIT",
        languages=" ".join(_MULTIJAIL),
        scorer="`judge` or a multilingual `guard`: safe, unsafe or invalid, the last being a verdict of its own",
        columns=("id", "source", *_MULTIJAIL, "tags"),
        convert=_multijail,
    ),
    DataSet(
        name="dolly",
        title="Multilingual Dolly (Aya evaluation suite)",
        source="https://huggingface.co/datasets/CohereForAI/aya_evaluation_suite (dolly_human_edited, dolly_machine_*)",
        licence="Apache-2.0",
        languages="ar es fr hi ru sr (edited by people), 101 translated by machine",
        scorer="`judge` as pairwise win rate against the base or the reference; `gold_nll` as a cheap stand-in",
        columns=("id", "inputs", "targets", "language", "script"),
        convert=_dolly,
    ),
    DataSet(
        name="mgsm",
        title="MGSM",
        source="https://github.com/google-research/url-nlp (mgsm/mgsm_*.tsv)",
        licence="CC BY-SA 4.0",
        languages="bn de en es fr ja ru sw te th zh",
        scorer="`exact_match` with `extract` and `normalise: [numbers]`: is the last number the answer",
        columns=("question", "answer"),
        convert=_mgsm,
        header=False,
    ),
)

DATA_SETS: Mapping[str, DataSet] = {data_set.name: data_set for data_set in _ALL}
