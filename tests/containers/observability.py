"""Checks of observability/: its files are YAML, and every service and file that they name exists."""

import re
from pathlib import Path

from checkout import check, yaml


def files():
    return sorted(path for path in Path("observability").rglob("*") if path.suffix in (".yml", ".yaml", ".env"))


def addresses(services):
    """Checks that each `name:port` names a service of docker-compose.yml."""
    for path in files():
        text = re.sub(r"(?m)(^|\s)#.*$", "", path.read_text())
        for name in re.findall(r"(?<![\w.$/-])(?:http://)?([a-z][a-z-]*):\d{2,5}\b", text):
            check(name in services or name == "localhost", f"{path}: {name} is no service of docker-compose.yml")


def collector(services):
    path = "observability/otel-collector.yaml"
    given = yaml(path)
    for name, pipeline in given["service"]["pipelines"].items():
        for kind in ("receivers", "processors", "exporters"):
            for component in pipeline[kind]:
                check(component in given[kind], f"{path}: the pipeline {name} names {component}, which {kind} lacks")
    port = given["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    endpoint = f"OTEL_EXPORTER_OTLP_ENDPOINT=http://otel-collector:{port}\n"
    check(endpoint in Path("observability/compose.env").read_text(), f"observability/compose.env must have {endpoint.strip()}")
    for name in ("shopbell", "demo"):
        environment = services[name]["environment"]
        check("OTEL_EXPORTER_OTLP_ENDPOINT" in environment, f"docker-compose.yml: {name}: OTEL_EXPORTER_OTLP_ENDPOINT is missing")


def mounts(services):
    """Checks that each file that the configuration names inside a container is mounted there."""

    def targets(service):
        return {volume.split(":")[1] for volume in services[service].get("volumes", [])}

    for rules in yaml("observability/prometheus.yml")["rule_files"]:
        check(f"/etc/prometheus/{rules}" in targets("prometheus"), f"observability/prometheus.yml: {rules} is not mounted")
    for provider in yaml("observability/grafana/provisioning/dashboards/dashboards.yaml")["providers"]:
        folder = provider["options"]["path"]
        check(folder in targets("grafana"), f"observability/grafana/provisioning: {folder} is not mounted")
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    dashboard = Path("observability/grafana/dashboards", Path(home).name)
    check(dashboard.exists(), f"docker-compose.yml: grafana: the home dashboard {dashboard} does not exist")


def checks():
    services = yaml("docker-compose.yml")["services"]
    for path in files():
        if path.suffix != ".env":
            yaml(path)
    addresses(services)
    collector(services)
    mounts(services)
