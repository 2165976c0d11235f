"""Runs the real binary with the arguments, settings and secret files that the manifests give a pod."""

import json
import re
import secrets
import subprocess
from contextlib import contextmanager

from services import PATIENCE_SECONDS, ask, eventually, free_ports

# `shopbell config` lists every OTEL_* variable that is set. OpenTelemetry's library reads these.
OF_OPENTELEMETRY = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES"}


class Pod:
    """The container of a workload. Its files are below a folder of the test."""

    def __init__(self, objects, workload, folder):
        self.name = workload["metadata"]["name"]
        pod = workload["spec"]["template"]["spec"]
        self.container = pod["containers"][0]
        self.files, self.folders = set(), []
        self.has_optional_secret = any(volume["secret"].get("optional") for volume in pod["volumes"])
        mounts = {mount["name"]: mount["mountPath"] for mount in self.container["volumeMounts"]}
        for volume in pod["volumes"]:
            if "items" in volume["secret"]:
                self.files |= {f"{mounts[volume['name']]}/{item['path']}" for item in volume["secret"]["items"]}
            else:
                # Without `items`, every key of the secret is a file.
                self.folders.append(f"{mounts[volume['name']]}/")
        self.folder = folder
        self.environment = dict(objects.settings()) if self.container.get("envFrom") else {}
        for variable in self.container.get("env", []):
            self.environment[variable["name"]] = expanded(variable, self.environment)
        for name, path in self.environment.items():
            if name.endswith("_FILE") and path not in self.files and not path.startswith(tuple(self.folders)):
                raise SystemExit(f"manifests: {self.name}: {name} is {path}, where no secret is mounted")

    def give(self, **given):
        """Writes secrets into the files that the variables `NAME_FILE` name."""
        for name, value in given.items():
            path = self.environment.get(f"{name}_FILE")
            if path is None:
                continue
            file = self.folder / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{value}\n")
            self.environment[f"{name}_FILE"] = str(file)

    def names(self):
        """The variables for the program, without those that only other variables refer to."""
        inner = {name for variable in self.container.get("env", []) for name in references(variable)}
        return self.environment.keys() - inner


def references(variable):
    return re.findall(r"\$\((\w+)\)", variable.get("value", ""))


def expanded(variable, environment):
    if "valueFrom" in variable:
        return "downward"
    return re.sub(r"\$\((\w+)\)", lambda name: environment[name[1]], variable["value"])


class Program:
    """The binary. It runs without the environment of the test."""

    def __init__(self, binary):
        self.binary = binary

    def run(self, *arguments, **environment):
        return subprocess.run([self.binary, *arguments], env=environment, capture_output=True, text=True, timeout=120)

    def must(self, purpose, *arguments, **environment):
        result = self.run(*arguments, **environment)
        if result.returncode != 0:
            raise SystemExit(f"manifests: {purpose}: shopbell {' '.join(arguments)} fails:\n{result.stdout}{result.stderr}")
        return result.stdout

    @contextmanager
    def serving(self, pod, log):
        """Runs the program like the pod, but on free ports of this machine. Yields both ports."""
        public, operations = free_ports(2)
        environment = {
            **pod.environment,
            "SHOPBELL_LISTEN": f"127.0.0.1:{public}",
            "SHOPBELL_OPS_LISTEN": f"127.0.0.1:{operations}",
        }
        with log.open("w") as output:
            process = subprocess.Popen([self.binary, *pod.container["args"]], env=environment, stdout=output, stderr=output)
        try:
            yield public, operations
        finally:
            process.terminate()
            if process.wait(timeout=PATIENCE_SECONDS) != 0:
                raise SystemExit(f"manifests: {pod.name} exited with an error, see {log}")


def settings_complaints(program, pod):
    """Complains about variables that the program does not read, values that it refuses, and ports that it does not open."""
    try:
        # Both roles get the same settings, so one of them must read each name. The ports belong to the role.
        whole = settings(program, [], {"SHOPBELL_JWT_HS256_SECRET": new_secret()} | without(pod, "SHOPBELL_JWT_HS256_SECRET_FILE"))
        of_role = settings(program, pod.container["args"][1:], pod.environment)
    except Refused as refusal:
        yield str(refusal)
        return
    for name in sorted(pod.names()):
        read = whole.get(name.removesuffix("_FILE"), {"origin": "default"})["origin"] != "default"
        if not read or (name.startswith("OTEL_") and name not in OF_OPENTELEMETRY):
            yield f"sets {name}, which the program does not read"
    addresses = [of_role[name] for name in ("SHOPBELL_LISTEN", "SHOPBELL_OPS_LISTEN") if name in of_role]
    listens = sorted(int(setting["value"].rpartition(":")[2]) for setting in addresses)
    ports = sorted(port["containerPort"] for port in pod.container["ports"])
    if listens != ports:
        yield f"has the ports {ports}, and the program listens on {listens}"


def relay_complaints(program, pod, log):
    """Starts the relay like the pod. Its servers do not exist, so it must live and not be ready."""
    pod.give(
        SHOPBELL_OUTBOX_DATABASE_URL="postgresql://shopbell_relay:secret@127.0.0.1:9/shop",
        AMQP_URL="amqp://shopbell:secret@127.0.0.1:9/shopbell",
    )
    with program.serving(pod, log) as (_, operations):
        for path, wanted in (("/livez", 200), ("/readyz", 503)):
            status, body = eventually(f"{pod.name} responds to {path}", ask, operations, path)
            if status != wanted:
                yield f"responds to {path} with {status}: {body}"
    # SHOPBELL_LISTEN of the test has no effect, and is a setting of other roles.
    if "is not known" in log.read_text():
        yield f"sets a variable that the relay does not know, see {log}"


class Refused(Exception):
    """The program's complaint about its environment."""


def settings(program, arguments, environment):
    """The settings that the program would use, by variable."""
    result = program.run("config", *arguments, "--output", "json", **environment)
    if result.returncode != 0:
        raise Refused(result.stderr.strip())
    return {setting["variable"]: setting for setting in map(json.loads, result.stdout.splitlines())}


def without(pod, name):
    return {key: value for key, value in pod.environment.items() if key != name}


def probe_complaints(pod, operations):
    """Sends each probe like the kubelet, but to the port where the caller started the program."""
    ports = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        request = pod.container[probe]["httpGet"]
        if ports.get(request["port"]) != 9090:
            yield f"has a {probe} on {request['port']}, which is not the operations port"
        status, body = eventually(f"{pod.name} responds to {request['path']}", ask, operations, request["path"])
        if status != 200:
            yield f"has a {probe} for {request['path']}, which returns {status}: {body}"


def new_secret():
    return secrets.token_hex(24)


def new_public_key():
    """An ES256 key in PEM, by the commands of docs/keys.md."""
    arguments = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    signing = subprocess.run(["openssl", "genpkey", *arguments], check=True, capture_output=True).stdout
    public = ["openssl", "pkey", "-pubout"]
    return subprocess.run(public, input=signing, check=True, capture_output=True).stdout.decode()
