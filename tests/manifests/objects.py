"""Checks the objects of one rendered kustomization against each other, without running anything."""

import re

SESSION_BYTES = 2 * 10 * 1024  # Measured 5.3 KiB when idle; the rest is a margin for replays.
LAST_SECONDS = 30  # A stop takes at most SHOPBELL_DRAIN_SECONDS and this.
DELIVERIES_MAX = 256  # src/ingest.rs, PREFETCH: most deliveries that a partition holds.
MESSAGE_BYTES_MAX = 8 << 20  # RabbitMQ's recommended max_message_size, assumed if RabbitMQ is not in the manifests.
HINTS_BYTES_MAX = 5 << 20  # The largest message of hints.

# For each PodMonitor: the kind whose operator creates the pods, and the name of their metrics port.
OPERATORS = {"shopbell-postgres": ("Cluster", "metrics"), "shopbell-rabbitmq": ("RabbitmqCluster", "prometheus")}


class Objects:
    """The rendered objects, with the queries of the checks."""

    def __init__(self, items):
        self.items = items

    def of(self, *kinds):
        return [item for item in self.items if item["kind"] in kinds]

    def find(self, kind, name):
        return next((item for item in self.of(kind) if item["metadata"]["name"] == name), None)

    def workloads(self):
        return self.of("Deployment", "Job")

    def settings(self):
        return next(item["data"] for item in self.of("ConfigMap") if item["metadata"]["name"].startswith("shopbell-settings-"))

    def namespace(self):
        return self.of("Namespace")[0]["metadata"]["name"]


def check(objects, documented, version):
    """Every complaint, as (object, text). `documented` maps each secret of docs/kubernetes.md to its keys."""
    for item in objects.items:
        yield from ((item, text) for text in of_any(objects, item))
    for item in objects.workloads():
        yield from ((item, text) for text in of_pods(objects, item, documented, version))
    checks = {
        "Deployment": of_deployment,
        "Service": of_service,
        "PodDisruptionBudget": of_budget,
        "NetworkPolicy": of_policy,
        "Ingress": of_ingress,
        "HTTPRoute": of_route,
        "PodMonitor": of_monitor,
        "RabbitmqCluster": of_rabbitmq,
        "ScaledObject": of_scaler,
        "Permission": of_permission,
        "User": lambda objects, item: of_user(item, documented),
    }
    for kind, of_kind in checks.items():
        for item in objects.of(kind):
            yield from ((item, text) for text in of_kind(objects, item))


def of_any(objects, item):
    if item["kind"] != "Namespace" and item["metadata"].get("namespace") != objects.namespace():
        yield f"is not in the namespace {objects.namespace()}"
    if item["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") != "shopbell":
        yield "has no label app.kubernetes.io/part-of: shopbell"


def of_pods(objects, item, documented, version):
    pod, labels = item["spec"]["template"]["spec"], item["spec"]["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    policies = [policy for policy in objects.of("NetworkPolicy") if selects(policy["spec"]["podSelector"], labels)]
    denied = {kind for policy in policies for kind in policy["spec"]["policyTypes"]}
    if denied != {"Ingress", "Egress"}:
        yield "is not isolated by NetworkPolicies for both Ingress and Egress"
    if pod.get("automountServiceAccountToken") is not False or pod.get("enableServiceLinks") is not False:
        yield "mounts a service account token, or has the addresses of other services in its environment"
    tag = container["image"].rpartition(":")[2]
    if tag != version:
        yield f"runs {container['image']} instead of the tag {version} of Cargo.toml"
    if item["kind"] == "Job" and item["metadata"]["name"] != f"shopbell-migrate-{tag}":
        yield f"is not named after the tag {tag}: applying a new version would fail, because a Job cannot be changed"
    if item["kind"] == "Job" and pod["restartPolicy"] != "Never":
        yield "deletes its log when it has failed for good: restartPolicy must be Never"
    for source in container.get("envFrom", []):
        if not objects.find("ConfigMap", source["configMapRef"]["name"]):
            yield f"reads its settings from {source['configMapRef']['name']}, which does not exist"
    mounts = {mount["name"] for mount in container.get("volumeMounts", []) if mount.get("readOnly")}
    for volume in pod.get("volumes", []):
        if volume["name"] not in mounts:
            yield f"does not mount {volume['name']} read-only"
        secret = volume["secret"]
        known = keys_of(objects, secret["secretName"], documented)
        if not known:
            yield f"needs the secret {secret['secretName']}, which docs/kubernetes.md does not describe"
        for entry in secret.get("items", []):
            if entry["key"] not in known:
                yield f"needs the key {entry['key']} of {secret['secretName']}, which docs/kubernetes.md does not describe"
        # Only root and the group may read the files, and the pod runs in the group.
        security = pod["securityContext"]
        if secret.get("defaultMode") != 0o440 or security.get("fsGroup") != security["runAsGroup"]:
            yield f"mounts {volume['name']} without permission to read it, or lets others read it"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in {volume["name"] for volume in pod.get("volumes", [])}:
            yield f"mounts {mount['name']}, which is not a volume"
    yield from restricted(pod)


def keys_of(objects, secret, documented):
    """The keys of a secret. CloudNativePG creates one for the owner of each cluster's database."""
    if objects.find("Cluster", secret.removesuffix("-app")) and secret.endswith("-app"):
        return {"uri", "username", "password"}
    return documented.get(secret, set())


def restricted(pod):
    """Complains about violations of the Pod Security standard `restricted`, and about writable file systems."""
    security = pod["securityContext"]
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile RuntimeDefault"
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container["securityContext"]
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
            yield "may gain privileges"
        if own.get("readOnlyRootFilesystem") is not True:
            yield "may write to its file system"


def of_deployment(objects, item):
    spec, pod = item["spec"], item["spec"]["template"]["spec"]
    labels, container = spec["template"]["metadata"]["labels"], pod["containers"][0]
    if not selects(spec["selector"], labels):
        yield "does not select its own pods"
    for constraint in pod["topologySpreadConstraints"]:
        if not selects(constraint["labelSelector"], labels):
            yield f"spreads the pods of others over {constraint['topologyKey']}"
    if spec["strategy"]["rollingUpdate"]["maxUnavailable"] != 0:
        yield "goes below its number of replicas in a rolling update"
    settings = objects.settings()
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    least = before + int(settings["SHOPBELL_DRAIN_SECONDS"]) + LAST_SECONDS
    if pod["terminationGracePeriodSeconds"] <= least:
        yield f"is killed after {pod['terminationGracePeriodSeconds']} s, but a stop may take {least} s"
    if "ports" in container and "http" in [port["name"] for port in container["ports"]]:
        if not before:
            yield "refuses clients before the proxies have removed it: it has no preStop"
        sessions = int(settings["SHOPBELL_MAX_SESSIONS"])
        if in_bytes(container["resources"]["limits"]["memory"]) < sessions * SESSION_BYTES:
            yield f"has not enough memory for {sessions} sessions"
    if labels["app.kubernetes.io/component"] == "ingest":
        held = int(settings["SHOPBELL_INGEST_PARTITIONS"]) * DELIVERIES_MAX * message_bytes_max(objects)
        if in_bytes(container["resources"]["limits"]["memory"]) < held:
            yield f"has not enough memory for {DELIVERIES_MAX} deliveries a partition, {held >> 20} MiB in total"
    if not [budget for budget in objects.of("PodDisruptionBudget") if selects(budget["spec"]["selector"], labels)]:
        yield "has no PodDisruptionBudget"


def message_bytes_max(objects):
    """The largest message that RabbitMQ accepts."""
    sizes = [configured(cluster, "max_message_size") for cluster in objects.of("RabbitmqCluster")]
    return max([int(value) for value in sizes if value], default=MESSAGE_BYTES_MAX)


def configured(cluster, key):
    lines = cluster["spec"]["rabbitmq"]["additionalConfig"].splitlines()
    return next((line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == key), None)


def of_rabbitmq(_, item):
    if int(configured(item, "max_message_size") or 0) < HINTS_BYTES_MAX:
        yield "sets no max_message_size, or one that is too small for hints"


def of_service(objects, item):
    pods = selected(objects, {"matchLabels": item["spec"]["selector"]})
    if not pods:
        yield "selects no pod"
    for port in item["spec"]["ports"]:
        if not all(has_port(pod, port["targetPort"]) for pod in pods):
            yield f"leads to the port {port['targetPort']}, which one of its pods lacks"


def of_budget(objects, item):
    mine = selects_something(objects, item["spec"]["selector"])
    if not mine:
        yield "selects no pod"
    if item["spec"].get("maxUnavailable") != 1:
        yield "does not allow nodes to be drained one by one (maxUnavailable: 1)"


def of_policy(objects, item):
    spec = item["spec"]
    if not selects_something(objects, spec["podSelector"]):
        yield "selects no pod"
    pods = selected(objects, spec["podSelector"])
    for rule in spec.get("ingress", []):
        for port in rule.get("ports", []):
            if pods and not all(has_port(pod, port["port"]) for pod in pods):
                yield f"allows the port {port['port']}, which one of its pods lacks"
    for rule in spec.get("ingress", []) + spec.get("egress", []):
        for peer in rule.get("from", []) + rule.get("to", []):
            here = "podSelector" in peer and "namespaceSelector" not in peer
            if here and not selects_something(objects, peer["podSelector"]):
                yield f"selects pods that do not exist: {peer['podSelector']}"


def of_ingress(objects, item):
    for rule in item["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            yield from of_backend(objects, backend["name"], "name", backend["port"]["name"])


def of_route(objects, item):
    rules = item["spec"]["rules"]
    for rule in rules:
        for backend in rule["backendRefs"]:
            yield from of_backend(objects, backend["name"], "port", backend["port"])
    sockets = [rule for rule in rules if rule["matches"][0]["path"]["value"] == "/v1/ws"]
    if [rule["timeouts"] for rule in sockets] != [{"request": "0s", "backendRequest": "0s"}]:
        yield "has a timeout for sockets"


def of_backend(objects, name, field, value):
    service = objects.find("Service", name)
    if not service or value not in [port[field] for port in service["spec"]["ports"]]:
        yield f"leads to {value} of the service {name}, which does not exist"


def of_monitor(objects, item):
    if operator := OPERATORS.get(item["metadata"]["name"]):
        yield from of_operators_monitor(objects, item, *operator)
        return
    pods = selected(objects, item["spec"]["selector"])
    if item["metadata"]["name"] == "shopbell-relay":
        # The monitoring component always has it, and the pods belong to the component relay.
        if {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} - {"relay"}:
            yield "scrapes other pods than relays"
    elif {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods} != {"gateway", "ingest"}:
        yield "does not scrape exactly gateway and ingest"
    for endpoint in item["spec"]["podMetricsEndpoints"]:
        if not all(has_port(pod, endpoint["port"]) for pod in pods):
            yield f"scrapes the port {endpoint['port']}, which one of its pods lacks"


def of_operators_monitor(objects, item, kind, port):
    """Requires pods only if the operator's component is there, because the monitoring component always has the monitor."""
    if objects.of(kind) and not selects_something(objects, item["spec"]["selector"]):
        yield f"does not scrape the pods of the {kind}"
    if [endpoint["port"] for endpoint in item["spec"]["podMetricsEndpoints"]] != [port]:
        yield f"does not scrape the operator's port {port}"


def of_scaler(objects, item):
    spec = item["spec"]
    target = objects.find("Deployment", spec["scaleTargetRef"]["name"])
    if not target:
        yield "scales a Deployment that does not exist"
    elif "replicas" in target["spec"]:
        yield "scales a Deployment whose manifest sets its replicas with each apply"
    for trigger in spec["triggers"]:
        if f'namespace="{objects.namespace()}"' not in trigger["metadata"]["query"]:
            yield f"does not count in the namespace {objects.namespace()}"
        if 2 * int(trigger["metadata"]["threshold"]) > int(objects.settings()["SHOPBELL_MAX_SESSIONS"]):
            yield "fills gateways above half, so they have no room for the clients of one that ends"


def of_permission(objects, item):
    for declared in objects.of("Exchange", "Queue"):
        if re.search(item["spec"]["permissions"]["configure"], declared["spec"]["name"]):
            yield f"allows its user to delete {declared['spec']['name']}"


def of_user(item, documented):
    secret = item["spec"].get("importCredentialsSecret", {}).get("name")
    if secret and not {"username", "password"} <= documented.get(secret, set()):
        yield f"needs username and password in the secret {secret}, which docs/kubernetes.md does not describe"


def selects(selector, labels):
    def holds(expression):
        inside = labels.get(expression["key"]) in expression["values"]
        return inside if expression["operator"] == "In" else not inside

    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(map(holds, selector.get("matchExpressions", [])))


def selected(objects, selector):
    templates = [item["spec"]["template"] for item in objects.workloads()]
    return [template for template in templates if selects(selector, template["metadata"]["labels"])]


def selects_something(objects, selector):
    """Also true for the pods that the operators create with their own labels."""
    made = [{"app.kubernetes.io/name": item["metadata"]["name"]} for item in objects.of("RabbitmqCluster")]
    made += [{"cnpg.io/cluster": item["metadata"]["name"]} for item in objects.of("Cluster")]
    return bool(selected(objects, selector)) or any(selects(selector, labels) for labels in made)


def has_port(pod, port):
    return any(port in (own["name"], own["containerPort"]) for own in pod["spec"]["containers"][0].get("ports", []))


def in_bytes(quantity):
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()
    return int(number) * 1024 ** ("KMG".index(unit[0]) + 1)
