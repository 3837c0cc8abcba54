# SPDX-License-Identifier: Apache-2.0
"""Every rule: its sick examples are found, its healthy ones are not, and its page is whole."""

import re

import pytest

from evenkeel.doctor.finding import SEVERITIES
from evenkeel.doctor.rules import SECTIONS, look, rule, rules
from evenkeel.errors import ArgumentError

SICK = [pytest.param(item, place, id=f"{item.name}-{place}") for item in rules() for place in range(len(item.sick))]
HEALTHY = [
    pytest.param(item, place, id=f"{item.name}-{place}") for item in rules() for place in range(len(item.healthy))
]
ALL = [pytest.param(item, id=item.name) for item in rules()]


@pytest.mark.parametrize(("item", "place"), SICK)
def test_the_sick_are_found(item, place):
    found = [finding for finding in look(item.sick[place]) if finding.rule == item.id]
    assert found and all(finding.severity in SEVERITIES for finding in found)
    assert all(finding.where and finding.seen and finding.why and finding.remedy for finding in found)
    assert not any("\n" in finding.why + finding.seen for finding in found)


@pytest.mark.parametrize(("item", "place"), HEALTHY)
def test_the_healthy_are_not(item, place):
    assert [finding for finding in look(item.healthy[place]) if finding.rule == item.id] == []


@pytest.mark.parametrize("item", ALL)
def test_a_page_is_whole(item):
    assert re.fullmatch(r"EK\d{3}", item.id) and item.title and item.severity in SEVERITIES
    assert tuple(item.sections) == SECTIONS and all(item.sections.values())
    assert item.sick and item.healthy
    assert len(item.why) <= 160


@pytest.mark.parametrize("item", ALL)
def test_what_a_rule_explains_is_there(item):
    assert {rule(other).id for other in item.explains} == set(item.explains)


def test_no_two_rules_share_an_id():
    assert len({item.id for item in rules()}) == len(rules())


def test_a_rule_is_found_by_id_in_any_case_and_by_name():
    assert rule("ek101") is rule("never_updated") is rule("EK101")


def test_an_unknown_rule_is_named():
    with pytest.raises(ArgumentError, match="no rule 'EK999'"):
        rule("EK999")
