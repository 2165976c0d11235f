"""Checks of docker-compose.yml: images, network, health checks, mounts and settings of each service."""

import os
import re
import subprocess
from pathlib import Path

from checkout import check, yaml
from dockerfile import instructions, is_pinned

OURS = "shopbell:dev"
# docker-compose.yml has the reason.
WITHOUT_HEALTHCHECK = {"otel-collector"}
DELIVERIES_MAX = 256  # src/ingest.rs, PREFETCH: most deliveries that a partition holds.
VARIABLE = re.compile(r"\$\{(\w+)(:-)?([^}]*)\}")


class Service:
    def __init__(self, name, given):
        self.name, self.given = name, given
        self.is_ours = given.get("image") == OURS
        self.is_task = given.get("restart") == "no"
        self.profiles = set(given.get("profiles", []))
        self.environment = given.get("environment", {})
        self.healthcheck = given.get("healthcheck", {})
        self.depends_on = given.get("depends_on", {})

    def check(self, holds, complaint):
        check(holds, f"docker-compose.yml: {self.name}: {complaint}")

    def is_watched(self):
        return "test" in self.healthcheck


def hardened(service):
    given = service.given
    service.check(service.is_ours or is_pinned(given.get("image", "")), f"{given.get('image')} is not pinned by a tag")
    service.check(given.get("cap_drop") == ["ALL"], "cap_drop must be [ALL]")
    service.check("no-new-privileges:true" in given.get("security_opt", []), "security_opt must have no-new-privileges:true")
    service.check("mem_limit" in given, "mem_limit is missing")
    restarts = ("no", "unless-stopped")
    service.check(given.get("restart") in restarts, f"restart must be one of {restarts}")
    for port in given.get("ports", []):
        service.check(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)), f"port {port} must be 127.0.0.1:HOST:CONTAINER")


def watched(service, services):
    if not service.is_task and service.name not in WITHOUT_HEALTHCHECK:
        service.check(service.is_watched(), "a service that keeps running needs a healthcheck")
    service.check(isinstance(service.depends_on, dict), "depends_on must have conditions")
    for name, dependency in service.depends_on.items():
        other = services.get(name)
        service.check(other, f"depends on {name}, which does not exist")
        if other:
            wanted = "service_completed_successfully" if other.is_task else "service_healthy"
            service.check(dependency["condition"] == wanted, f"the condition of {name} must be {wanted}")
            service.check(other.profiles <= service.profiles, f"depends on {name}, which some of its profiles do not have")


def mounted(service, volumes):
    for volume in service.given.get("volumes", []):
        source, _, rest = volume.partition(":")
        if source.startswith("."):
            service.check(Path(source).exists(), f"mounts {source}, which does not exist")
            service.check(rest.endswith(":ro"), f"mounts {source} writable, although it is in the checkout: add :ro")
        else:
            service.check(source in volumes, f"the volume {source} is not declared")


def built(services):
    """Checks that one service builds our image, and that all others that run it wait for that one."""
    builders = [service for service in services.values() if "build" in service.given]
    names = [service.name for service in builders]
    check(len(builders) == 1, f"docker-compose.yml: exactly one service must build {OURS}, but these do: {names}")
    for builder in builders:
        builder.check(builder.is_ours, f"builds another image than {OURS}")
        known = [rest.partition("=")[0] for name, rest in instructions() if name == "ARG"]
        for name in builder.given["build"].get("args", {}):
            builder.check(name in known, f"the Dockerfile has no ARG {name}")
    for service in services.values():
        if service.is_ours and service not in builders:
            service.check(service.given.get("pull_policy") == "never", f"pull_policy must be never: {OURS} is in no registry")
            for name in names:
                service.check(name in service.depends_on, f"must depend on {name}, which builds {OURS}")


def ours(service, services, shopbell):
    """Checks that the binary accepts the ports, commands and settings of a service that runs our image."""
    exposed = {name: rest for name, rest in instructions()}["EXPOSE"].split()
    listened = exposed + [str(service.environment.get("SHOPBELL_LISTEN", "")).rpartition(":")[2]]
    for port in service.given.get("ports", []):
        service.check(port.rpartition(":")[2] in listened, f"publishes {port}, but does not listen there")
    for command in [service.given["command"], service.healthcheck.get("test", ["", "", "healthcheck"])[2:]]:
        asked = subprocess.run([shopbell, *command, "--help"], capture_output=True, text=True)
        service.check(asked.returncode == 0, f"`shopbell {' '.join(command)}`: {asked.stderr.strip()}")
    # A task lacks some settings that `shopbell config` needs, so it gets those of the service.
    environment = {**services["shopbell"].environment, **service.environment}
    # With the values of the observability file, because `shopbell config` does not list empty variables.
    values = assignments("observability/compose.env")
    for name, value in environment.items():
        environment[name] = VARIABLE.sub(lambda found: values.get(found[1], found[3]), value)
    if service.given["command"][0] in ("serve", "demo"):
        least = DELIVERIES_MAX * message_bytes_max()
        enough = in_bytes(service.given["mem_limit"]) > least
        service.check(enough, f"mem_limit must be above {least >> 20}m: {DELIVERIES_MAX} of RabbitMQ's largest messages")
    environment["PATH"] = os.environ["PATH"]
    config = subprocess.run([shopbell, "config"], env=environment, capture_output=True, text=True)
    service.check(config.returncode == 0, f"`shopbell config`: {config.stderr.strip()}")
    known = [line.split()[0] for line in config.stdout.splitlines()]
    # `shopbell config` lists the settings of `serve` only.
    known += ["SHOPBELL_OUTBOX_DATABASE_URL"] if known and service.given["command"] == ["relay"] else []
    for name in service.environment if known else []:
        service.check(name in known, f"Shopbell does not read the variable {name}")


def message_bytes_max():
    (found,) = re.findall(r"(?m)^max_message_size = (\d+)$", Path("docker/rabbitmq/20-shopbell.conf").read_text())
    return int(found)


def in_bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)([mg])", quantity).groups()
    return int(number) << {"m": 20, "g": 30}[unit]


def assignments(path):
    """The variables of an environment file."""
    lines = [line for line in Path(path).read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def variables(services):
    """Checks that each variable of docker-compose.yml has a default, and that the environment files set no others."""
    text = re.sub(r"(?m)^\s*#.*$", "", Path("docker-compose.yml").read_text())
    for name, default, _ in VARIABLE.findall(text):
        check(default, f"docker-compose.yml: ${{{name}}} needs a default, so that `docker compose up` needs no setting")
    known = {name for name, _, _ in VARIABLE.findall(text)} | {"COMPOSE_PROFILES"}
    profiles = set().union(*(service.profiles for service in services.values()))
    for path in (".env", "observability/compose.env"):
        for name, value in assignments(path).items():
            check(name in known, f"{path}: docker-compose.yml has no ${{{name}}}")
            if name == "COMPOSE_PROFILES":
                for profile in value.split(","):
                    check(profile in profiles, f"{path}: there is no profile {profile}")


def checks(shopbell):
    compose = yaml("docker-compose.yml")
    services = {name: Service(name, given) for name, given in compose["services"].items()}
    used = {volume.partition(":")[0] for service in services.values() for volume in service.given.get("volumes", [])}
    for volume in compose["volumes"]:
        check(volume in used, f"docker-compose.yml: no service uses the volume {volume}")
    for service in services.values():
        hardened(service)
        watched(service, services)
        mounted(service, compose["volumes"])
        if service.is_ours:
            ours(service, services, shopbell)
    built(services)
    variables(services)
