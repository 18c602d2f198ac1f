"""What Google's sentences of quotas, machines and permissions mean, and what to do about them."""

import re

_METRIC = re.compile(r"[a-z][a-z0-9-]*\.googleapis\.com/[\w/-]+")
_QUOTA = re.compile(
    r"quotas? (?:metric |are exceeded: |exceeded: )"
    r"(?:'(?P<quoted>[^']+)'|(?P<plain>[\w/, -]+?)(?:[.;]|$| and))"
)
"""Finds the quota's name where it is not that of a metric."""
_STOCKOUT = re.compile(
    r"resources are insufficient|insufficient resources|STOCKOUT|"
    r"(does not|doesn't) have enough resources|resource pool exhausted",
    re.IGNORECASE,
)
_SERVING = re.compile("custom_?model_?serving", re.IGNORECASE)
_QUOTAS_LINK = "https://console.cloud.google.com/iam-admin/quotas"
_PERMISSION = re.compile(r"[Pp]ermission '?([a-z]+\.[\w.]+)'?")
_RESOURCE = re.compile(r"on resource '?(?://[\w.]+/|/v\w+/)?([^\s'()]+)")
_PROJECT_DENIED = re.compile(r"[Pp]ermission denied on resource project '?([\w.:-]*\w)")
_QUOTA_PROJECT = re.compile(r"requires a quota project|permission to use project '?([\w.:-]*\w)")
_ROLES_HINT = "docs/remote.md lists the permissions of each step and the roles that have them."

Told = tuple[str, str | None]
"""A sentence for the user, and a hint."""


def is_without_machines(message: str) -> bool:
    """Whether a region has no machine of a kind at the moment, or the quota of it is used up."""
    return is_stockout(message) or any(map(_SERVING.search, quota_names(message)))


def is_stockout(message: str) -> bool:
    """Whether a region has no machine of a kind at the moment, whatever the quota."""
    return _STOCKOUT.search(message) is not None


def exhausted_text(
    message: str,
    *,
    region: str | None = None,
    project: str | None = None,
    machine: str = "such machine",
) -> Told:
    """What is told of a quota or machines that are used up."""
    where = f" in {region}" if region else ""
    if is_stockout(message):
        return (
            f"Google has no {machine} left{where} at the moment. It says: {message}.",
            "A larger quota does not help. Try again later, or take another region, machine or "
            "accelerator.",
        )
    names = quota_names(message)
    if not names:
        return f"Google says: {message}.", None
    quotas = f"quota {names[0]} is" if len(names) == 1 else f"quotas {', '.join(names)} are"
    link = f"{_QUOTAS_LINK}?project={project}" if project else _QUOTAS_LINK
    of = f" of the project {project}" if project else ""
    accelerators = any(_SERVING.search(name) for name in names)
    return (
        f"The {quotas} exceeded{where}{of}.",
        f"{'For accelerators it is zero until it is asked for. ' if accelerators else ''}"
        f"Ask for more at {link}, or take another region, machine or accelerator.",
    )


def quota_names(message: str) -> list[str]:
    """The quotas that Google names in a message, by their metrics or their own names."""
    if "quota" not in message.lower():
        return []
    if metrics := _METRIC.findall(message):
        return list(dict.fromkeys(metrics))
    found = _QUOTA.search(message)
    named = found and (found["quoted"] or found["plain"])
    return [named.strip(" ,")] if named else []


def refused_text(message: str) -> Told:
    """What is told where Google refuses a permission."""
    if found := _QUOTA_PROJECT.search(message):
        named = f"the project {found[1]}" if found[1] else "a project"
        return (
            f"Google needs {named} to count the calls of these credentials for: {message}.",
            "`gcloud auth application-default set-quota-project PROJECT`, or the environment "
            "variable GOOGLE_CLOUD_QUOTA_PROJECT, names one in which the account has "
            "roles/serviceusage.serviceUsageConsumer.",
        )
    if found := _PROJECT_DENIED.search(message):
        return (
            f"There is no project {found[1]}, or this account may not use it: Google does not say "
            "which.",
            "Is its name right? `gcloud projects list` shows the account's projects.",
        )
    if found := _PERMISSION.search(message):
        missing = f"The permission {found[1].rstrip('.')} is missing"
        if "may not exist" not in message:
            return f"{missing}.", _ROLES_HINT
        resource = _RESOURCE.search(message)
        what = resource[1].rstrip(".") if resource else "what it is needed on"
        project = re.match(r"projects/([^/]+)", what)
        asks = f"Is the project's name right, {project[1]}? " if project else ""
        return (
            f"{missing}, or {what} does not exist: Google does not say which.",
            f"{asks}{_ROLES_HINT}",
        )
    return f"Google says: {message}.", None
