"""Which defaults of installation and namespace hold: today's until a run is accepted, then those it began with."""

from __future__ import annotations

from gemmatune_api.site_defaults import SiteDefaults, of_config_map
from gemmatune_operator.observe import Observed, takes_defaults
from gemmatune_operator.settings import Settings


def taken(observed: Observed, settings: Settings) -> SiteDefaults:
    """The defaults to resolve the spec with: the namespace's, field by field, over the installation's.

    Raises:
        InvalidResourceError: the namespace's ConfigMap cannot be read.
    """
    if not takes_defaults(observed):
        return observed.status.defaults or SiteDefaults()
    return of_config_map(observed.namespace_defaults).over(settings.defaults)
