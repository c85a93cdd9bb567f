"""An audit as JUnit XML, which every CI shows: one test suite a run, a test case for its verdict and one a check."""

from __future__ import annotations

import re
from typing import Literal
from xml.etree import ElementTree

import rlmon.report.phrases as phrases
from rlmon.audit.result import Audit, Check
from rlmon.printable import one_line

FailOn = Literal["never", "warn", "fail"]

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(*audits: Audit, fail_on: FailOn = "fail") -> str:
    """The XML document, in ASCII. ``fail_on``: from which status a check is a failure (``never``: none is)."""
    root = ElementTree.Element("testsuites", name="rlmon")
    for audit in audits:
        suite = ElementTree.SubElement(root, "testsuite", name=valid(f"rlmon {one_line(audit.run.source, 200)}"))
        _verdict(suite, audit, fail_on)
        for check in audit.checks:
            _case(suite, audit, check, fail_on)
        for tag in ("failure", "error", "skipped"):
            name = {"failure": "failures", "error": "errors"}.get(tag, tag)
            suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
        suite.set("tests", str(1 + len(audit.checks)))
        wall = audit.timing_seconds.get("wall")
        if wall is not None:
            suite.set("time", f"{wall:.3f}")
        properties = ElementTree.Element("properties")
        for name, value in (
            ("verdict", phrases.verdict(audit).lower()),
            ("headline", one_line(audit.headline)),
            ("coverage", str(audit.coverage)),
        ):
            ElementTree.SubElement(properties, "property", name=name, value=valid(value))
        suite.insert(0, properties)
    ElementTree.indent(root)
    body: bytes = ElementTree.tostring(root, encoding="us-ascii")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body.decode("ascii")}\n'


def valid(text: str) -> str:
    """``text`` with every character that XML 1.0 forbids replaced by U+FFFD."""
    return _NOT_XML.sub("\ufffd", text)


def _verdict(suite: ElementTree.Element, audit: Audit, fail_on: FailOn) -> None:
    """The verdict as a test: what is unsure is skipped, so that nothing shows it in green."""
    case = _element(suite, audit, "verdict")
    said = valid(f"{phrases.verdict(audit)}: {one_line(audit.headline)}")
    if audit.verdict == "insufficient":
        ElementTree.SubElement(case, "skipped", message=valid("\n".join([said, *phrases.missing(audit)])))
    elif _fails(audit.verdict, fail_on):
        ElementTree.SubElement(case, "failure", message=said, type=audit.verdict).text = said
    else:
        ElementTree.SubElement(case, "system-out").text = said


def _element(suite: ElementTree.Element, audit: Audit, name: str) -> ElementTree.Element:
    run = f"rlmon.{valid(one_line(audit.run.id, 80))}"
    return ElementTree.SubElement(suite, "testcase", classname=run, name=valid(one_line(name, 80)))


def _fails(word: str, fail_on: FailOn) -> bool:
    return word in {"never": (), "warn": ("warn", "fail"), "fail": ("fail",)}[fail_on]


def _case(suite: ElementTree.Element, audit: Audit, check: Check, fail_on: FailOn) -> None:
    case = _element(suite, audit, check.id)
    said = valid(phrases.said(check))
    if check.status in ("skip", "unsure"):
        ElementTree.SubElement(case, "skipped", message=said)
    elif check.status == "error":
        ElementTree.SubElement(case, "error", message=said, type="error").text = _body(check)
    elif _fails(check.status, fail_on):
        ElementTree.SubElement(case, "failure", message=said, type=check.status).text = _body(check)
    else:
        ElementTree.SubElement(case, "system-out").text = f"{check.status.upper()}: {_body(check)}"


def _body(check: Check) -> str:
    lines = [phrases.said(check)]
    if numbers := phrases.base_to_now(check):
        line = "" if check.threshold is None else f" (line {phrases.number(check.threshold)})"
        lines.append(f"{numbers}{line}")
    if where := phrases.where(check):
        lines.append(where)
    if check.advice:
        lines.append(f"What to do: {one_line(check.advice)}")
    for example in phrases.examples(check):
        head, characters, tail = example.ends(100, 200)
        text = f"{head} {phrases.left_out(characters)} {tail}" if characters else head
        lines.append(
            f"{phrases.example_head(example)}: {'not stored' if example.completion is None else one_line(text)}"
        )
    return valid("\n".join(lines))
