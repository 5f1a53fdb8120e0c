"""docker-compose.yml, the Dockerfile and what stands beside them, read as files: no engine runs here."""

import json
import re
import subprocess
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from service.settings import Settings
from tests.deploy.dockerfile import ancestry, parse_stages, sources

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
STAGES = parse_stages((ROOT / "Dockerfile").read_text())
ENTRYPOINT = ROOT / "deploy" / "runner-entrypoint.sh"

RAY_NODES = {"ray-head", "ray-worker", "runner"}
ON_DATABASE = {"api", "migrate", "runner"}
LONG_LIVED = {"postgres", "api", "runner", "ray-head", "ray-worker"}


def environment(service: str) -> dict[str, str]:
    return dict(SERVICES[service].get("environment", {}))


def mounts(service: str) -> dict[str, str]:
    """By the place in the container: what is mounted there, with its mode."""
    # A variable's default may hold a colon, so the parts are counted from the right.
    entries = [re.fullmatch(r"(.+?):(/[^:]+)(:ro)?", text) for text in SERVICES[service].get("volumes", [])]
    return {entry[2]: entry[1] + (entry[3] or "") for entry in entries if entry}


class TestSpecification:
    @pytest.fixture
    def validator(self) -> Draft7Validator:
        schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
        Draft7Validator.check_schema(schema)
        return Draft7Validator(schema)

    def test_the_file_follows_it(self, validator: Draft7Validator) -> None:
        assert [error.message for error in validator.iter_errors(COMPOSE)] == []

    def test_a_misspelt_key_is_seen(self, validator: Draft7Validator) -> None:
        wrong = deepcopy(COMPOSE)
        wrong["services"]["api"]["port"] = wrong["services"]["api"].pop("ports")
        assert not validator.is_valid(wrong)

    def test_the_services_are_those_of_the_design(self) -> None:
        assert set(SERVICES) == {"postgres", "migrate", "api", "ray-head", "ray-worker", "runner"}


class TestSecrets:
    @pytest.mark.parametrize("service", sorted(SERVICES))
    def test_only_nodes_of_the_cluster_hold_the_token(self, service: str) -> None:
        expected = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} if service in RAY_NODES else set()
        assert {name for name in environment(service) if name.startswith("RAY_AUTH")} == expected
        assert ("RAY_AUTH_TOKEN" in json.dumps(SERVICES[service])) == (service in RAY_NODES)

    @pytest.mark.parametrize("service", sorted(RAY_NODES))
    def test_the_cluster_asks_for_the_token(self, service: str) -> None:
        assert environment(service)["RAY_AUTH_MODE"] == "token"

    @pytest.mark.parametrize("service", sorted(SERVICES))
    def test_only_api_runner_and_migrations_can_open_the_database(self, service: str) -> None:
        assert ("EINSEARCH_DATABASE_URL" in environment(service)) == (service in ON_DATABASE)
        assert ("POSTGRES_PASSWORD" in json.dumps(SERVICES[service])) == (service in {"postgres", *ON_DATABASE})

    @pytest.mark.parametrize("secret", ["POSTGRES_PASSWORD", "RAY_AUTH_TOKEN"])
    def test_a_secret_has_no_default_and_its_absence_is_explained(self, secret: str) -> None:
        used = {variable for variable in re.findall(r"\$\{[^}]*\}|\$\w+", COMPOSE_TEXT) if secret in variable}
        assert used == {f"${{{secret}:?set {secret} in .env}}"}

    def test_every_variable_is_explained_in_the_example(self) -> None:
        example = (ROOT / ".env.example").read_text()
        offered = dict(re.findall(r"^(?:# )?([A-Z][A-Z_]*)=(.*)$", example, re.MULTILINE))
        assert set(offered) == set(re.findall(r"\$\{([A-Z_]+)", COMPOSE_TEXT))
        assert re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE) == [
            ("POSTGRES_PASSWORD", ""),
            ("RAY_AUTH_TOKEN", ""),
        ]


class TestNetworks:
    def test_nothing_is_published_beyond_loopback(self) -> None:
        published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
        assert published == {"api": ["127.0.0.1:8000:8000"], "ray-head": ["127.0.0.1:8265:8265"]}
        assert not [name for name, service in SERVICES.items() if "network_mode" in service]

    @pytest.mark.parametrize("service", ["ray-head", "ray-worker"])
    def test_postgres_is_out_of_reach_of_what_runs_trials(self, service: str) -> None:
        assert not set(SERVICES[service]["networks"]) & set(SERVICES["postgres"]["networks"])

    def test_each_talks_to_what_it_names(self) -> None:
        networks = {name: set(service["networks"]) for name, service in SERVICES.items()}
        for service in ON_DATABASE:
            assert networks[service] & networks["postgres"]
        for service in RAY_NODES:
            assert networks[service] & networks["ray-head"]
        assert not networks["api"] & networks["ray-head"]


class TestSettings:
    @pytest.mark.parametrize("service", sorted(SERVICES))
    def test_every_setting_exists(self, service: str) -> None:
        known = {f"EINSEARCH_{name.upper()}" for name in Settings.model_fields}
        assert {name for name in environment(service) if name.startswith("EINSEARCH_")} <= known

    @pytest.mark.parametrize("service", sorted(ON_DATABASE))
    def test_the_program_accepts_them(self, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in environment(service).items():
            monkeypatch.setenv(name, re.sub(r"\$\{POSTGRES_PASSWORD:[^}]*\}", "a_b-C", value))
        settings = Settings()
        assert settings.database == "postgresql+psycopg://einsearch:a_b-C@postgres/einsearch"

    def test_the_published_port_is_where_the_api_listens(self) -> None:
        assert environment("api")["EINSEARCH_HOST"] == "0.0.0.0"
        assert SERVICES["api"]["ports"] == [f"127.0.0.1:8000:{environment('api')['EINSEARCH_PORT']}"]
        assert f":{environment('api')['EINSEARCH_PORT']}/healthz" in STAGES["api"].arguments("HEALTHCHECK")[0]

    @pytest.mark.parametrize("service", ["api", "runner", "ray-worker"])
    def test_the_users_texts_are_shared_and_read_only(self, service: str) -> None:
        place = environment(service)["EINSEARCH_CORPORA_DIR"]
        assert mounts(service)[place] == "${EINSEARCH_CORPORA:-corpora}:ro"

    def test_data_sets_that_were_fetched_lie_among_them(self) -> None:
        runner = environment("runner")
        assert runner["EINSEARCH_HUB_DIR"].startswith(runner["EINSEARCH_CORPORA_DIR"] + "/")

    def test_workers_keep_what_they_prepare_where_the_runner_says(self) -> None:
        assert mounts("ray-worker")[environment("runner")["EINSEARCH_HOME"]] == "worker-home"


class TestLifecycle:
    def test_long_lived_services_come_back_and_the_migration_runs_once(self) -> None:
        assert {name for name, service in SERVICES.items() if service["restart"] == "unless-stopped"} == LONG_LIVED
        assert SERVICES["migrate"]["restart"] == "no"

    def test_nothing_touches_the_database_before_its_migration(self) -> None:
        assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        for service in ("api", "runner"):
            assert SERVICES[service]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}

    @pytest.mark.parametrize("service", sorted(set(SERVICES) - {"postgres"}))
    def test_our_containers_have_an_init_and_no_privileges(self, service: str) -> None:
        assert SERVICES[service]["init"] is True
        assert SERVICES[service]["cap_drop"] == ["ALL"]
        assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]

    def test_workers_can_be_scaled(self) -> None:
        assert not {"container_name", "hostname", "ports"} & set(SERVICES["ray-worker"])
        assert "--num-cpus=${RAY_WORKER_CPUS:-2}" in SERVICES["ray-worker"]["command"]

    @pytest.mark.parametrize("service", sorted(RAY_NODES))
    def test_rays_object_store_fits_into_the_shared_memory(self, service: str) -> None:
        command = " ".join(SERVICES[service]["command"]) if service != "runner" else ENTRYPOINT.read_text()
        size = re.search(r"--object-store-memory=(\d+)", command)
        assert size
        assert SERVICES[service]["shm_size"] == "1gb"
        assert int(size[1]) < 0.95 * 2**30


class TestImages:
    @pytest.mark.parametrize(
        ("target", "extras"), [("api", {"parquet"}), ("runner", {"runner"}), ("worker", {"huggingface,workers"})]
    )
    def test_each_installs_its_extra_and_no_other(self, target: str, extras: set[str]) -> None:
        commands = [c for name in sources(STAGES, target) for c in STAGES[name].arguments("RUN") if "pip install" in c]
        assert {extra for command in commands for extra in re.findall(r"\[([^\]]*)\]", command)} == extras
        assert {command for command in commands if "-c constraints.txt" not in command} == {
            "pip install --no-deps --force-reinstall /dist/*.whl"
        }

    @pytest.mark.parametrize("target", ["api", "runner", "worker"])
    def test_each_runs_as_einsearch(self, target: str) -> None:
        users = [user for stage in ancestry(STAGES, target) for user in stage.arguments("USER")]
        runs = " ".join(run for stage in ancestry(STAGES, target) for run in stage.arguments("RUN"))
        assert users == ["10001:10001"]
        assert re.search(r"useradd --uid 10001 .*\beinsearch\b", runs)

    @pytest.mark.parametrize("target", ["api", "runner", "worker"])
    def test_each_has_one_thread_and_an_unbuffered_output(self, target: str) -> None:
        variables = " ".join(text for stage in ancestry(STAGES, target) for text in stage.arguments("ENV")).split()
        assert {"OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1"} <= set(variables)

    def test_the_services_use_the_image_made_for_them(self) -> None:
        targets = {name: service["build"]["target"] for name, service in SERVICES.items() if "build" in service}
        assert targets == {
            "migrate": "api",
            "api": "api",
            "ray-head": "worker",
            "ray-worker": "worker",
            "runner": "runner",
        }
        assert {name: SERVICES[name]["image"] for name in targets} == {n: f"einsearch-{t}" for n, t in targets.items()}

    def test_our_images_are_built_here_and_never_pulled(self) -> None:
        ours = {
            name for name, service in SERVICES.items() if service.get("pull_policy") == "build" and "build" in service
        }
        assert ours == set(SERVICES) - {"postgres"}

    def test_the_wheel_holds_every_package(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        packages = {
            pattern.removesuffix("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
        }
        copied = {text.split()[0] for text in STAGES["wheel"].arguments("COPY")} - {"README.md"}
        assert copied == packages

    def test_the_build_context_holds_what_is_copied_and_no_more(self) -> None:
        ignore = (ROOT / ".dockerignore").read_text().splitlines()
        copied = {
            name
            for stage in STAGES.values()
            for text in stage.arguments("COPY")
            if "--from=" not in text
            for name in [word for word in text.split() if not word.startswith("--")][:-1]
        }
        assert "*" in ignore
        assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == copied
        assert [name for name in copied if not (ROOT / name).exists()] == []


class TestRunnerEntrypoint:
    def test_it_becomes_the_runner_after_joining_the_cluster_as_a_node_without_cpus(self) -> None:
        script = re.sub(r"\s*\\\n\s*", " ", ENTRYPOINT.read_text()).splitlines()
        commands = [line for line in script if line and not line.startswith("#")]
        assert commands[-1] == 'exec python -m service.runner "$@"'
        assert commands[-2].startswith(
            'env -u EINSEARCH_DATABASE_URL ray start --address="$EINSEARCH_RAY_ADDRESS" --num-cpus=0'
        )

    def test_it_says_what_it_misses(self) -> None:
        result = subprocess.run(["sh", ENTRYPOINT], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        assert result.returncode != 0
        assert "EINSEARCH_RAY_ADDRESS: set it to the Ray head, for example ray-head:6379" in result.stderr

    def test_the_compose_file_gives_it_the_head(self) -> None:
        assert SERVICES["runner"]["command"] == ["runner-entrypoint"]
        assert environment("runner")["EINSEARCH_RAY_ADDRESS"] == "ray-head:6379"
        assert "--port=6379" in SERVICES["ray-head"]["command"]
