"""What a host needs before it runs VMs, beside programs: `bosh-cpi setup`."""

from cpi.config.config import Config
from cpi.host.limits import sysctls
from cpi.setup import kernel_settings, units
from cpi.setup.steps import CONFIG, Step, System


def preparation(system: System, config: Config, config_file: str | None) -> list[Step]:
    """Return what is still to be done; nothing on a host that is prepared."""
    steps = of_kernel(system, config)
    if system.has_systemd:
        steps += units.install(system, config, config_file or CONFIG)
    return steps


def of_kernel(system: System, config: Config) -> list[Step]:
    """Return what the kernel lacks: modules, then limits, which may come with them."""
    limits = sysctls(config.integer("max_vms"))
    return [*kernel_settings.modules(system), *kernel_settings.settings(system, limits)]
