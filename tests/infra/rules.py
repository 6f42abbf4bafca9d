"""What the KubeRay operator, and Ray, ask of a RayJob beyond its schema: each rule yields its breaches."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

from poisoncam_ray.config import Config
from poisoncam_ray.settings import load_config
from poisoncam_ray.stages.batches import LEAST_IN_FLIGHT
from tests.infra.render import ROOT, Manifest, PodTemplate, quantity, ray_cluster, ray_job, ray_pods

MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
TOKEN_SINCE = (2, 52)
QUEUE = "kueue.x-k8s.io/queue-name"

Breaches = Iterator[str]


def name_is_short(manifests: list[Manifest]) -> Breaches:
    name = ray_job(manifests)["metadata"]["name"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"{name!r} must be a DNS label of at most 47 characters"


def replicas_in_order(manifests: list[Manifest]) -> Breaches:
    for group in ray_cluster(manifests)["workerGroupSpecs"]:
        if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: minReplicas ≤ replicas ≤ maxReplicas"


def group_names_differ(manifests: list[Manifest]) -> Breaches:
    names = [group["groupName"] for group in ray_cluster(manifests)["workerGroupSpecs"]]
    if len(names) != len(set(names)):
        yield f"two worker groups of one name: {names}"


def shutdown_where_wanted(manifests: list[Manifest]) -> Breaches:
    spec = ray_job(manifests)["spec"]
    shutdown, ttl = spec.get("shutdownAfterJobFinishes", False), spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0:
        yield "ttlSecondsAfterFinished is negative"
    if not shutdown and ttl > 0:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if not shutdown and spec.get("suspend"):
        yield "suspend needs shutdownAfterJobFinishes"
    if shutdown and spec.get("deletionStrategy", {}).get("deletionRules"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if not shutdown and not spec.get("deletionStrategy"):
        yield "the cluster would outlive its job"


def one_cluster(manifests: list[Manifest]) -> Breaches:
    spec = ray_job(manifests)["spec"]
    if "clusterSelector" in spec:
        if spec.get("backoffLimit"):
            yield "backoffLimit makes a new cluster: not with clusterSelector"
        if spec.get("suspend"):
            yield "suspend does not go with clusterSelector"


def submission(manifests: list[Manifest]) -> Breaches:
    spec = ray_job(manifests)["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in MODES:
        yield f"submissionMode {mode} is none of {sorted(MODES)}"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "InteractiveMode does not go with backoffLimit"
    if mode == "SidecarMode":
        if {"submitterPodTemplate", "submitterConfig"} & spec.keys():
            yield "SidecarMode has no submitter of its own"
        if ray_pods(manifests)[0].spec.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode wants the head's restartPolicy Never"
    if mode == "K8sJobMode" and spec.get("submitterConfig", {}).get("backoffLimit") != 0:
        yield "a second submitter meets its own submission id: submitterConfig.backoffLimit 0"


def ends_by_itself(manifests: list[Manifest]) -> Breaches:
    spec = ray_job(manifests)["spec"]
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if spec.get("activeDeadlineSeconds", 0) <= 0:
        yield "activeDeadlineSeconds must be positive: a lost head can leave a job running forever"


def runtime_env_parses(manifests: list[Manifest]) -> Breaches:
    text = ray_job(manifests)["spec"].get("runtimeEnvYAML", "{}")
    try:
        parsed = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML: {error}"
        return
    known = {"env_vars", "working_dir", "py_modules", "excludes", "config"}
    if not isinstance(parsed, dict) or not parsed.keys() <= known:
        yield f"runtimeEnvYAML holds more than {sorted(known)}"
    elif not all(isinstance(value, str) for value in parsed.get("env_vars", {}).values()):
        yield "runtimeEnvYAML: environment variables are strings"


def resources_stated_once(manifests: list[Manifest]) -> Breaches:
    cluster = ray_cluster(manifests)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        params = group["rayStartParams"].keys()
        where = group.get("groupName", "head")
        if group.get("resources") and params & {"num-cpus", "num-gpus", "memory", "resources"}:
            yield f"{where}: resources stand in rayStartParams or in the group, not in both"
        if "labels" in params:
            yield f"{where}: labels are the group's, not rayStartParams'"


def autoscaler(manifests: list[Manifest]) -> Breaches:
    cluster = ray_cluster(manifests)
    options, on = cluster.get("autoscalerOptions", {}), cluster.get("enableInTreeAutoscaling", False)
    for pod in ray_pods(manifests):
        restart = pod.spec.get("restartPolicy", "Never")
        if on and options.get("version") == "v2" and restart != "Never":
            yield f"{pod.where}: autoscaler v2 wants restartPolicy Never, not {restart}"
        by_hand = [e["name"] for e in pod.spec["containers"][0].get("env", [])]
        if "RAY_enable_autoscaler_v2" in by_hand:
            yield f"{pod.where}: RAY_enable_autoscaler_v2 is autoscalerOptions.version"
    if on and any(group.get("suspend") for group in cluster["workerGroupSpecs"]):
        yield "a worker group cannot be suspended with the autoscaler on"
    if on and not options.get("idleTimeoutSeconds"):
        yield "idleTimeoutSeconds: idle GPUs cost as much as busy ones"
    head = cluster["headGroupSpec"]["template"]["spec"]
    if on and not head.get("automountServiceAccountToken", True):
        yield "the autoscaler beside the head needs the service account's token"


def token_is_on(manifests: list[Manifest]) -> Breaches:
    cluster = ray_cluster(manifests)
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode must be token"
    elif version(cluster.get("rayVersion", "0")) < TOKEN_SINCE:
        yield f"token authentication needs Ray 2.52, not {cluster.get('rayVersion')}"


def gcs_fault_tolerance(manifests: list[Manifest]) -> Breaches:
    cluster = ray_cluster(manifests)
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        return
    if "valueFrom" not in options.get("redisPassword", {}):
        yield "Redis' password comes from a Secret"
    head = cluster["headGroupSpec"]
    names = {e["name"] for e in head["template"]["spec"]["containers"][0].get("env", [])}
    if names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"}:
        yield "Redis is set in gcsFaultToleranceOptions alone, not in the head's environment"
    if head["rayStartParams"].keys() & {"redis-password", "redis-username"}:
        yield "Redis is set in gcsFaultToleranceOptions alone, not in rayStartParams"
    annotations = ray_job(manifests)["metadata"].get("annotations", {})
    if annotations.keys() & {"ray.io/ft-enabled", "ray.io/external-storage-namespace"}:
        yield "gcsFaultToleranceOptions replaces the annotations of older operators"


def queued_jobs_wait(manifests: list[Manifest]) -> Breaches:
    job = ray_job(manifests)
    if QUEUE in job["metadata"].get("labels", {}):
        if not job["spec"].get("suspend"):
            yield "a job with a queue starts suspended"
        if job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield "Kueue admits a whole cluster: not with the autoscaler"
    elif job["spec"].get("suspend"):
        yield "a suspended job without a queue never starts"


def one_ray_version(manifests: list[Manifest]) -> Breaches:
    stated = ray_cluster(manifests).get("rayVersion", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (wanted,) = [item for item in project if item.startswith("ray[")]
    low, high = re.findall(r"[\d.]+", wanted)
    if not version(low) <= version(stated) < version(high):
        yield f"rayVersion {stated} is not the project's {wanted}"
    for container in [c for pod in ray_pods(manifests) for c in pod.containers]:
        if f"ray{stated}-" not in container["image"]:
            yield f"image {container['image']} does not say Ray {stated}"


def head_only_leads(manifests: list[Manifest]) -> Breaches:
    if ray_cluster(manifests)["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield 'the head takes no work: num-cpus "0"'


def job_fits_the_cluster(manifests: list[Manifest]) -> Breaches:
    """The configuration that the entrypoint chooses, against what the worker groups have at most."""
    config = chosen_config(ray_job(manifests)["spec"]["entrypoint"])
    scaling = ray_cluster(manifests).get("enableInTreeAutoscaling", False)
    have = {"CPU": 0.0, "GPU": 0.0}
    largest = {"CPU": 0.0, "GPU": 0.0}
    workers = [pod for pod in ray_pods(manifests) if pod.role == "worker"]
    for group, pod in zip(ray_cluster(manifests)["workerGroupSpecs"], workers, strict=True):
        for key, value in logical(pod).items():
            have[key] += value * group["maxReplicas" if scaling else "replicas"]
            largest[key] = max(largest[key], value)
    r, p = config.resources, config.pretrain
    # A training worker takes a whole GPU where actors take any.
    actor = {"CPU": r.cpus_per_actor, "GPU": max(r.gpus_per_actor, 1) if r.gpus_per_actor else 0}
    for key, each in actor.items():
        if each > largest[key]:
            yield f"an actor's {each:g} {key} are more than a node's {largest[key]:g}"
    # Where no number is set, the job takes as many as there are: an actor, and two readers, for each rank.
    reading = (r.readers or LEAST_IN_FLIGHT * p.workers) * r.cpus_per_reader
    training_gpus = p.workers if r.gpus_per_actor else 0
    actors = r.actors or p.workers
    wanted = {
        "CPU": max(actors, p.workers) * r.cpus_per_actor + reading,
        "GPU": max(actors * r.gpus_per_actor, training_gpus),
    }
    for key, need in wanted.items():
        if need > have[key]:
            yield f"the job asks for {need:g} {key}, the cluster has {have[key]:g}"


def chosen_config(entrypoint: str) -> Config:
    words = entrypoint.split()
    options = dict(pairwise(words))
    return load_config(
        options.get("--preset"), None, [word for word in words if re.match(r"\w+\.\w+=", word)]
    )


def logical(pod: PodTemplate) -> dict[str, float]:
    """What Ray counts on this pod: rayStartParams, or the limits as the operator reads them."""
    limits = pod.spec["containers"][0]["resources"]["limits"]
    cpus = pod.start_params.get("num-cpus", quantity(limits["cpu"]))
    gpus = pod.start_params.get("num-gpus", limits.get("nvidia.com/gpu", 0))
    return {"CPU": float(cpus), "GPU": float(gpus)}


def version(text: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(text)))


RULES = (
    name_is_short, replicas_in_order, group_names_differ, shutdown_where_wanted, one_cluster, submission,
    ends_by_itself, runtime_env_parses, resources_stated_once, autoscaler, token_is_on,
    gcs_fault_tolerance, queued_jobs_wait, one_ray_version, head_only_leads, job_fits_the_cluster,
)  # fmt: skip
