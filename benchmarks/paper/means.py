"""What the paper reports of BIG-Bench Hard: the means over its two kinds of tasks."""

from __future__ import annotations

import json

from benchmarks.paper.groups import Group, Row, by_question, settings_of
from benchmarks.paper.methods import METHODS
from benchmarks.paper.statistics import interval_of_mean, wilson

NLP = """
causal_judgement date_understanding disambiguation_qa formal_fallacies hyperbaton
movie_recommendation penguins_in_a_table reasoning_about_colored_objects ruin_names
salient_translation_error_detection snarks sports_understanding
""".split()
ALGORITHMIC = """
boolean_expressions dyck_languages geometric_shapes logical_deduction_five_objects
logical_deduction_seven_objects logical_deduction_three_objects multistep_arithmetic_two navigate
object_counting temporal_sequences tracking_shuffled_objects_five_objects
tracking_shuffled_objects_seven_objects tracking_shuffled_objects_three_objects web_of_lies
word_sorting
""".split()
KINDS = {"NLP": NLP, "algorithmic": ALGORITHMIC}

NOTE = f"""\
Over BBH's {len(NLP)} NLP and {len(ALGORITHMIC)} algorithmic tasks (the split of Suzgun et al. 2022;
each file is a task), all with the same weight, of methods that have runs of all of a kind. 95 %
intervals by the bootstrap over seeds and over questions in each task by itself."""
HEAD = "| method | seeds |" + "".join(f" {kind}: exact, % | lenient, % |" for kind in KINDS)
RULE = "|---" * (2 + 2 * len(KINDS)) + "|"


def means(groups: dict[str, Group]) -> list[str]:
    """A table for each setting in which a method has all tasks of a kind."""
    of_settings: dict[str, dict[str, Group]] = {}
    for name, group in groups.items():
        same = json.dumps(settings_of(group))
        of_settings.setdefault(same, {})[name] = group
    found = []
    for tables in of_settings.values():
        if rows := _rows(tables):
            told = max((name.partition(",")[2] for name in tables), key=len)
            title = f"### bbh, means over tasks{told and ','}{told}"
            found += [title, NOTE, "\n".join([HEAD, RULE, *rows])]
    return found


def _rows(tables: dict[str, Group]) -> list[str]:
    """A row for each method that has all tasks of a kind."""
    of_name: dict[str, dict[str, Row]] = {}
    for group in tables.values():
        for row in group:
            if runs := row.went_through():
                of_name.setdefault(row.name, {})[runs[0]["key"]["task"]] = row
    found = []
    for name, of_task in sorted(of_name.items(), key=_place):
        whole = [[of_task.get(f"bbh/{task}") for task in tasks] for tasks in KINDS.values()]
        kinds = [[row for row in rows if row] if all(rows) else [] for rows in whole]
        if any(kinds):
            seeds = sorted({len(row.went_through()) for rows in kinds for row in rows})
            cells = [_mean(rows, score) for rows in kinds for score in ("exact", "lenient")]
            count = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
            found.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return found


def _place(named: tuple[str, dict[str, Row]]) -> int:
    return min(list(METHODS).index(row.method) for row in named[1].values())


def _mean(rows: list[Row], score: str) -> str:
    """Of what is right in each task, with its interval: Wilson's where there is nothing to draw."""
    if not rows:
        return ""
    runs = [row.went_through() for row in rows]
    values = [by_question(of, [run["after"][score] for run in of]) for of in runs]
    found = interval_of_mean(values)
    low, high = found.low, found.high
    if low == high:
        low, high = wilson(found.mean, sum(len(of_task[0]) for of_task in values))
    return f"{100 * found.mean:.0f} ({100 * low:.0f} to {100 * high:.0f})"
