"""A whole examination: every section that was asked for, one report."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct, to_builtins

from moonbase.chat.request import Sampling
from moonbase.engines.upstream.client import UpstreamClient
from moonbase.engines.upstream.limits import UpstreamLimits
from moonbase.verify.contract import chosen_checks, contract_checks, verify_contract
from moonbase.verify.endpoint import Access, Endpoint
from moonbase.verify.probe import ModelTraits, Probe
from moonbase.verify.prompt_tokens import RULE as PROMPT_RULE
from moonbase.verify.prompt_tokens import PromptCase, verify_prompt_tokens
from moonbase.verify.report import Report, Result, Selection
from moonbase.verify.schemas import RULES as SCHEMA_RULES
from moonbase.verify.schemas import SchemaPlan, SchemaRun
from moonbase.verify.vendor import RULES as VENDOR_RULES
from moonbase.verify.vendor import VendorPlan, VendorRun

Progress = Callable[[str, int], Callable[[], None]]
"""Told a section's name and the number of its steps; returns what to call after each."""


class Examination(Struct, frozen=True, kw_only=True):
    """What is examined, and how. Sections that are None are left out. `timeout` is in seconds of silence."""

    url: str
    access: Access
    traits: ModelTraits = ModelTraits()
    selection: Selection = Selection()
    timeout: float = 600.0
    ca_file: str | None = None
    schemas: SchemaPlan | None = None
    vendor: VendorPlan | None = None
    prompts: tuple[PromptCase, ...] = ()


def check_names(traits: ModelTraits) -> list[str]:
    """All checks that there are, for models of these traits and of others, with whatever files.

    What a model fixes adds checks and takes others away, so those of a model without any are asked for as well.
    """
    every = ModelTraits(thinking="optional", fixed=dict.fromkeys(Sampling.__struct_fields__) | dict(traits.fixed))
    names = [check.name for each in (traits, every, ModelTraits()) for check in contract_checks(each)]
    return sorted({*names, PROMPT_RULE, *SCHEMA_RULES, *VENDOR_RULES})


async def examine(wanted: Examination, progress: Progress) -> Report:
    """Run it; cancelled, it returns what was found until then.

    Raises `EndpointFailed` when the endpoint is not there, and `ConfigurationError` for bad files.
    """
    started = time.monotonic()
    limits = UpstreamLimits(first_byte_timeout=wanted.timeout, idle_timeout=wanted.timeout)
    results: list[Result] = []
    figures: dict[str, Any] = {}
    interrupted = False
    async with UpstreamClient(wanted.url, limits=limits, ca_file=wanted.ca_file) as client:
        endpoint = Endpoint(client, wanted.access)
        vendor = None if wanted.vendor is None else VendorRun(endpoint, wanted.vendor)
        try:
            await endpoint.introduce()
            await _run_sections(endpoint, wanted, vendor, progress, results, figures)
        except asyncio.CancelledError:
            interrupted = True
            if (task := asyncio.current_task()) is not None:
                task.uncancel()  # whoever cancelled gets the report
    return Report(
        url=wanted.url,
        model=endpoint.model,
        requests=endpoint.requests,
        seconds=round(time.monotonic() - started, 3),
        results=tuple(results),
        figures=figures,
        interrupted=interrupted,
    )


async def _run_sections(
    endpoint: Endpoint,
    wanted: Examination,
    vendor: VendorRun | None,
    progress: Progress,
    results: list[Result],
    figures: dict[str, Any],
) -> None:
    """Add to `results` and `figures`; when cancelled, what contract and schemas have found by then."""
    selection = wanted.selection
    if checks := chosen_checks(wanted.traits, selection):
        try:
            await verify_contract(Probe(endpoint, wanted.traits), checks, results, progress("contract", len(checks)))
        finally:
            order = {check.name: place for place, check in enumerate(checks)}
            results.sort(key=lambda result: (result.name.partition(".")[0], order[result.name]))
    if wanted.prompts and selection.wants(PROMPT_RULE):
        step = progress("prompt tokens", len(wanted.prompts))
        result, figures["prompt_tokens"] = await verify_prompt_tokens(endpoint, wanted.prompts, step)
        results.append(result)
    if wanted.schemas is not None and selection.wants_any(SCHEMA_RULES):
        run = SchemaRun(endpoint, wanted.schemas)
        try:
            await run.run(progress("schemas", run.total))
        finally:
            results += run.judge(selection)
            figures["schemas"] = {"overall": to_builtins(run.overall), "bounded": to_builtins(run.limited)}
    if vendor is not None and selection.wants_any(VENDOR_RULES):
        found, figures["vendor"] = await vendor.run(selection, progress("requests", vendor.total))
        results += found
