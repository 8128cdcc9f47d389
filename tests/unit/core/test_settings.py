"""One table, checked whole; and what a Celery project brings along."""

from __future__ import annotations

import ast
import datetime as dt
import logging
import types
import typing
from typing import Any

import pytest

from celeriac.core.celery_settings import MEANINGLESS
from celeriac.core.errors import ImproperlyConfigured
from celeriac.core.settings import SETTINGS, Settings, check_name, check_values, from_environ, mask_url, masked, read_settings

# Every setting of Celery 5.7.
CELERY = """
accept_content beat_cron_starting_deadline beat_enable_remote_control beat_max_loop_interval beat_remote_control_max_tick_age beat_schedule
beat_schedule_filename beat_scheduler beat_sync_every broker_channel_error_retry broker_connection_max_retries broker_connection_retry
broker_connection_retry_on_startup broker_connection_timeout broker_failover_strategy broker_heartbeat broker_heartbeat_checkrate broker_host
broker_login_method broker_native_delayed_delivery_queue_type broker_password broker_pool_acquire_timeout broker_pool_limit broker_port
broker_read_url broker_transport broker_transport_options broker_url broker_use_ssl broker_user broker_vhost broker_write_url cache_backend
cache_backend_options control_exchange control_queue_durable control_queue_exclusive control_queue_expires control_queue_ttl
database_create_tables_at_setup database_engine_callback database_engine_options database_short_lived_sessions database_table_names
database_table_schemas database_url event_exchange event_queue_durable event_queue_exclusive event_queue_expires event_queue_prefix
event_queue_ttl event_serializer redis_backend_use_ssl redis_db redis_host redis_max_connections redis_password redis_port
redis_retry_on_timeout redis_socket_connect_timeout redis_socket_keepalive redis_socket_timeout redis_username result_accept_content
result_backend result_backend_always_retry result_backend_base_sleep_between_retries_ms result_backend_max_retries
result_backend_max_sleep_between_retries_ms result_backend_transport_options result_cache_max result_chord_expires result_chord_join_timeout
result_chord_retry_interval result_compression result_exchange result_exchange_type result_expires result_extended result_failure_expires
result_persistent result_serializer security_cert_store security_certificate security_digest security_key security_key_password
task_acks_late task_acks_on_failure task_acks_on_failure_or_timeout task_acks_on_timeout task_allow_error_cb_on_chord_header
task_always_eager task_annotations task_compression task_create_missing_queue_exchange_type task_create_missing_queue_type
task_create_missing_queues task_default_delivery_mode task_default_exchange task_default_exchange_type task_default_priority
task_default_queue task_default_queue_type task_default_rate_limit task_default_routing_key task_eager_propagates task_ignore_result
task_inherit_parent_priority task_protocol task_publish_retry task_publish_retry_policy task_queue_max_priority task_queues
task_reject_on_worker_lost task_remote_tracebacks task_repr_maxlevels task_retry_on_worker_lost task_routes task_send_sent_event
task_serializer task_soft_time_limit task_store_eager_result task_store_errors_even_if_ignored task_time_limit task_track_started
worker_agent worker_autoscaler worker_cancel_long_running_tasks_on_connection_loss worker_concurrency worker_consumer
worker_deduplicate_successful_tasks worker_detect_quorum_queues worker_direct worker_disable_prefetch worker_disable_rate_limits
worker_enable_prefetch_count_reduction worker_enable_remote_control worker_enable_soft_shutdown_on_idle worker_eta_task_limit
worker_hijack_root_logger worker_log_color worker_log_datefmt worker_log_format worker_lost_wait worker_max_memory_per_child
worker_max_tasks_per_child worker_pool worker_pool_putlocks worker_pool_restarts worker_pool_start_method worker_prefetch_multiplier
worker_proc_alive_timeout worker_redirect_stdouts worker_redirect_stdouts_level worker_send_task_events worker_soft_shutdown_timeout
worker_state_db worker_task_log_datefmt worker_task_log_format worker_timer worker_timer_precision arangodb_backend_settings
azureblockblob_base_path azureblockblob_connection_timeout azureblockblob_container_name azureblockblob_read_timeout
azureblockblob_retry_increment_base azureblockblob_retry_initial_backoff_sec azureblockblob_retry_max_attempts cassandra_auth_kwargs
cassandra_auth_provider cassandra_bundle_path cassandra_entry_ttl cassandra_keyspace cassandra_options cassandra_port
cassandra_read_consistency cassandra_servers cassandra_table cassandra_write_consistency cosmosdbsql_collection_name
cosmosdbsql_consistency_level cosmosdbsql_database_name cosmosdbsql_max_retry_attempts cosmosdbsql_max_retry_wait_time
couchbase_backend_settings elasticsearch_max_retries elasticsearch_retry_on_timeout elasticsearch_save_meta_as_text elasticsearch_timeout
enable_utc gcs_base_path gcs_bucket gcs_project gcs_ttl imports include mongodb_backend_settings s3_access_key_id s3_base_path s3_bucket
s3_endpoint_url s3_region s3_secret_access_key timezone
""".split()


def problems(**given: Any) -> str:
    with pytest.raises(ImproperlyConfigured) as caught:
        Settings.build(given)
    return str(caught.value)


class TestTable:
    def test_every_name_of_celery_is_known(self) -> None:
        assert len(CELERY) == 207
        unknown = []
        for name in CELERY:
            try:
                assert check_name(name) == name
            except ImproperlyConfigured:
                unknown.append(name)
        assert unknown == []

    def test_a_setting_has_a_meaning_or_none(self) -> None:
        assert not SETTINGS.keys() & MEANINGLESS.keys()
        for name, (old, reason) in MEANINGLESS.items():
            assert reason.endswith(".") and "\n" not in reason and old == old.upper(), name
            remarks = Settings.build({name: None}).remarks
            assert len(remarks) == 1 and remarks[0].startswith(f"{name} has no effect. ")

    def test_old_names_are_told_apart(self) -> None:
        old = [line.old_name for line in SETTINGS.values() if line.old_name] + [old for old, _ in MEANINGLESS.values() if old]
        assert len(old) == len(set(old))

    @pytest.mark.parametrize("line", SETTINGS.values(), ids=lambda line: line.name)
    def test_defaults_pass_their_own_check(self, line: Any) -> None:
        assert line.check(line.default) == line.default
        assert line.sentence.endswith(".") and line.kind
        if line.celery_default is not None and line.celery_default != line.default:
            assert "Celery" in line.sentence or line.name == "beat_scheduler"

    def test_annotations_fit_the_defaults(self) -> None:
        hints = typing.get_type_hints(Settings)
        assert hints.keys() == {*SETTINGS, "remarks"}
        for name, line in SETTINGS.items():
            assert (line.default is None) <= (hints[name] is Any or type(None) in typing.get_args(hints[name])), name

    def test_defaults_of_the_design(self) -> None:
        conf = Settings.build({})
        assert conf.broker_url == "sqlite:///celeriac.db" and conf.result_backend is None and conf.remarks == []
        assert (conf.task_acks_late, conf.task_max_crashes, conf.broker_publish_timeout) == (True, 3, 1.0)
        assert (conf.worker_heartbeat_interval, conf.worker_lease_duration, conf.worker_soft_shutdown_timeout) == (5.0, 15.0, 25.0)
        assert (conf.result_expires, conf.task_default_queue, conf.accept_content) == (86400.0, "celery", ("json",))


class TestChecks:
    def test_all_problems_are_told_at_once(self) -> None:
        lines = problems(task_time_limt=1, task_acks_late="yes", result_expires="1d", worker_concurrency=0).splitlines()
        assert lines == [
            "Unknown setting 'task_time_limt'. Did you mean 'task_time_limit'?",
            "task_acks_late must be True or False, not 'yes'.",
            "result_expires must be seconds (a number or a timedelta), at least 0, not '1d'.",
            "worker_concurrency must be a whole number, at least 1, not 0.",
        ]

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("task_acks_late", 2),
            ("result_expires", -1),
            ("result_expires", True),
            ("result_expires", float("nan")),
            ("task_time_limit", 0),
            ("broker_publish_timeout", 0),
            ("task_max_crashes", 0),
            ("task_max_crashes", 1.5),
            ("task_default_priority", 10),
            ("accept_content", ["jsn"]),
            ("accept_content", []),
            ("task_serializer", "auth"),
            ("result_serializer", "pickle"),
            ("timezone", "Mars/Olympus"),
            ("worker_pool", "prefrok"),
            ("worker_pool_start_method", "forkserver"),
            ("broker_url", ""),
            ("broker_url", 5),
            ("broker_transport_options", []),
            ("imports", 5),
            ("imports", [5]),
            ("task_queues", [{"exchange": "x"}]),
            ("task_queues", ["a", "a"]),
            ("task_queues", 5),
            ("task_routes", 5),
            ("task_routes", "queue"),
            ("task_routes", {"a": {"queu": "x"}}),
            ("task_routes", {"a": {"priority": 11}}),
            ("task_publish_retry_policy", {"max_retry": 1}),
            ("task_publish_retry_policy", {"max_retries": -1}),
            ("task_default_rate_limit", "10/d"),
            ("worker_redirect_stdouts_level", "LOUD"),
            ("beat_schedule", {"x": {"task": "t"}}),
            ("beat_schedule", {"x": {"task": "t", "schedule": 1, "arg": 1}}),
            ("task_default_queue", 7),
        ],
    )
    def test_bad_values_are_named(self, name: str, value: Any) -> None:
        assert problems(**{name: value}).startswith(f"{name} must be ")

    @pytest.mark.parametrize(
        ("name", "value", "seen"),
        [
            ("result_expires", dt.timedelta(hours=1), 3600.0),
            ("result_expires", 0, None),
            ("result_expires", None, None),
            ("task_time_limit", 5, 5.0),
            ("task_acks_late", 0, False),
            ("task_acks_late", None, True),
            ("accept_content", ["application/json", "yaml"], ("json", "yaml")),
            ("accept_content", "json", ("json",)),
            ("task_serializer", "application/json", "json"),
            ("broker_url", ["redis://a", "redis://b"], "redis://a;redis://b"),
            ("imports", "shop.tasks", ("shop.tasks",)),
            ("timezone", dt.UTC, "UTC"),
            ("timezone", "Asia/Kathmandu", "Asia/Kathmandu"),
            ("worker_pool", "processes", "prefork"),
            ("worker_redirect_stdouts_level", logging.INFO, "INFO"),
            ("task_default_rate_limit", 5, 5.0),
            ("task_default_rate_limit", "100/m", "100/m"),
        ],
    )
    def test_values_as_people_write_them(self, name: str, value: Any, seen: Any) -> None:
        conf = Settings.build({name: value})
        assert conf[name] == seen and type(conf[name]) is type(seen)

    def test_impossible_pairs(self) -> None:
        assert "task_soft_time_limit (10 s) must be shorter than task_time_limit (10 s)" in problems(
            task_soft_time_limit=10, task_time_limit=10
        )
        assert "more than twice worker_heartbeat_interval" in problems(worker_lease_duration=10, worker_heartbeat_interval=5)
        assert "task_serializer 'pickle' is not in accept_content (json)" in problems(task_serializer="pickle")
        assert "task_default_queue 'celery' is not in task_queues (a)" in problems(task_queues=["a"], task_create_missing_queues=False)

    def test_one_by_one_pairs_do_not_matter_yet(self) -> None:
        check_values({"task_serializer": "pickle", "broker_host": "h", "worker_prefetch_multiplier": 1})
        check_values({"worker_heartbeat_interval": 30})
        with pytest.raises(ImproperlyConfigured, match="task_acks_late must be"):
            check_values({"task_acks_late": "no"})
        with pytest.raises(ImproperlyConfigured, match="Did you mean"):
            check_values({"task_acks_lat": True})

    def test_queues(self) -> None:
        kombu_like = types.SimpleNamespace(
            name="b", exchange=types.SimpleNamespace(name="x"), routing_key="k", queue_arguments=None, max_priority=9
        )
        conf = Settings.build({"task_queues": ["a", kombu_like, {"name": "c", "routing_key": "c.#"}]})
        assert conf.task_queues is not None
        assert [(queue.name, queue.exchange, queue.routing_key) for queue in conf.task_queues] == [
            ("a", "", ""),
            ("b", "x", "k"),
            ("c", "", "c.#"),
        ]
        conf = Settings.build({"task_queues": {"a": {"exchange": "a", "binding_key": "k"}, "b": None}})
        assert conf.task_queues is not None and [queue.name for queue in conf.task_queues] == ["a", "b"]

    def test_a_broker_said_in_parts(self) -> None:
        parts = {
            "broker_transport": "redis",
            "broker_host": "h",
            "broker_port": 1,
            "broker_user": "u",
            "broker_password": "p@",
            "broker_vhost": "/3",
        }
        assert Settings.build(parts).broker_url == "redis://u:p%40@h:1/3"
        assert Settings.build({**parts, "broker_url": "memory://"}).broker_url == "memory://"
        assert Settings.build({"broker_read_url": "redis://a", "broker_write_url": "redis://a"}).broker_url == "redis://a"
        assert "one broker has to serve both" in problems(broker_read_url="redis://a", broker_write_url="redis://b")


class TestNames:
    def test_old_names(self) -> None:
        conf = Settings.build({"CELERY_ACKS_LATE": False, "BROKER_URL": "memory://", "CELERYD_PREFETCH_MULTIPLIER": 1})
        assert (conf.task_acks_late, conf.broker_url) == (False, "memory://")
        assert conf["CELERY_ACKS_LATE"] is False and conf.BROKER_URL == "memory://" and conf.worker_prefetch_multiplier == 1
        assert len(conf.remarks) == 1

    def test_old_and_new_are_not_mixed(self) -> None:
        assert "CELERY_ACKS_LATE → task_acks_late" in problems(CELERY_ACKS_LATE=True, task_time_limit=5)

    def test_twice_the_same(self) -> None:
        assert "are the same setting" in problems(CELERY_TIMEZONE="UTC", TIMEZONE="UTC")

    @pytest.mark.parametrize(
        ("name", "suggestion"),
        [
            ("task_time_limt", "task_time_limit"),
            ("acks_late", "task_acks_late"),
            ("brokerurl", "broker_url"),
            ("concurrency", "worker_concurrency"),
            ("result_backed", "result_backend"),
            ("worker_prefetch_multiplyer", "worker_prefetch_multiplier"),
        ],
    )
    def test_suggestions(self, name: str, suggestion: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=f"Did you mean '{suggestion}'"):
            check_name(name)

    def test_nothing_to_suggest(self) -> None:
        with pytest.raises(ImproperlyConfigured, match=r"^Unknown setting 'qqqqqqq'\.$"):
            check_name("qqqqqqq")

    def test_a_forgotten_namespace(self) -> None:
        assert "namespace='CELERY'" in problems(CELERY_TASK_ACKS_LATE=True)


class TestSources:
    DJANGO = types.SimpleNamespace(
        DEBUG=True,
        CELERY_BROKER_URL="redis://localhost",
        CELERY_TASK_TIME_LIMIT=1800,
        CELERY_BEAT_SCHEDULER="django_celery_beat.schedulers:DatabaseScheduler",
        CELERY_CACHE_BACKEND="default",
        CELERY_EMAIL_BACKEND="x",
        DJANGO_CELERY_BEAT_TZ_AWARE=False,
        CELERYD_CONCURRENCY=5,
    )

    def test_namespace(self) -> None:
        assert read_settings(self.DJANGO, "CELERY") == {
            "broker_url": "redis://localhost",
            "task_time_limit": 1800,
            "beat_scheduler": "django_celery_beat.schedulers:DatabaseScheduler",
            "cache_backend": "default",
        }
        assert read_settings(vars(self.DJANGO), "CELERY_") == read_settings(self.DJANGO, "CELERY")

    def test_typos_under_a_namespace(self) -> None:
        with pytest.raises(ImproperlyConfigured) as caught:
            read_settings({"CELERY_TASK_TIME_LIMT": 1, "CELERY_ACKS_LATE": True}, "CELERY")
        assert str(caught.value).splitlines() == [
            "Unknown setting 'CELERY_TASK_TIME_LIMT'. Did you mean 'CELERY_TASK_TIME_LIMIT'?",
            "'CELERY_ACKS_LATE' is the old name of a setting. With namespace='CELERY' write CELERY_TASK_ACKS_LATE.",
        ]

    def test_modules(self) -> None:
        module = types.ModuleType("celeryconfig")
        exec(
            "import os\nfrom datetime import timedelta\nhost = 'h'\nbroker_url = f'redis://{host}'\ndef task_helper(): pass\n", vars(module)
        )
        assert read_settings(module) == {"broker_url": "redis://h"}
        module.__dict__["task_time_limt"] = 5
        with pytest.raises(ImproperlyConfigured, match="Did you mean 'task_time_limit'"):
            read_settings(module)

    def test_a_module_may_use_names_of_settings_for_its_imports(self) -> None:
        module = types.ModuleType("celeryconfig")
        module.__dict__.update(timezone=types.ModuleType("timezone"), include=["a"])
        assert read_settings(module) == {"include": ["a"]}

    def test_old_and_new_are_not_mixed_in_one_source(self) -> None:
        assert read_settings({"CELERY_ACKS_LATE": True, "BROKER_URL": "memory://"}) == {"task_acks_late": True, "broker_url": "memory://"}
        with pytest.raises(ImproperlyConfigured, match="mixed"):
            read_settings({"CELERY_ACKS_LATE": True, "broker_url": "memory://"})

    def test_classes(self) -> None:
        class Config:
            task_always_eager = True
            imports = ("a",)

        assert read_settings(Config) == {"task_always_eager": True, "imports": ("a",)}

    def test_mappings_are_taken_whole(self) -> None:
        with pytest.raises(ImproperlyConfigured, match="Unknown setting 'colour'"):
            read_settings({"colour": "red"})

    def test_environment(self) -> None:
        environ = {
            "CELERY_BROKER_URL": "memory://",
            "CELERY_RESULT_BACKEND": "",
            "AUTOSCALE_KEEPALIVE": "5",
            "CELERY_WORKER_REVOKE_EXPIRES": "60",
        }
        found = from_environ(environ)
        assert found == {"broker_url": "memory://", "worker_autoscale_keepalive": 5.0, "revokes_expire": 60.0}
        assert from_environ({"CELERY_RESULT_BACKEND": "redis://5"}) == {"result_backend": "redis://5"}
        conf = Settings.build({"BROKER_URL": "redis://", "CELERY_ACKS_LATE": True}, found)
        assert conf.broker_url == "memory://" and conf.task_acks_late is True
        assert "worker_autoscale_keepalive must be" in str(
            pytest.raises(ImproperlyConfigured, Settings.build, {}, from_environ({"AUTOSCALE_KEEPALIVE": "x"})).value
        )


class TestReading:
    def test_all_ways(self) -> None:
        conf = Settings.build({"task_time_limit": 5})
        assert conf.task_time_limit == conf["task_time_limit"] == conf.get("CELERYD_TASK_TIME_LIMIT") == 5
        assert conf.get("nothing", 3) == 3 and "task_time_limit" in conf and "nothing" not in conf
        assert conf.first("task_soft_time_limit", "task_time_limit") == 5
        assert dict(conf.items()).keys() == SETTINGS.keys() == set(conf) and len(conf) == len(list(conf.values()))
        with pytest.raises(KeyError):
            conf["nothing"]
        with pytest.raises(AttributeError, match="Did you mean 'task_time_limit'"):
            conf.task_time_limt  # noqa: B018

    def test_is_read_only(self) -> None:
        conf = Settings.build({})
        with pytest.raises(ImproperlyConfigured, match="Set task_acks_late before"):
            conf.task_acks_late = False
        with pytest.raises(ImproperlyConfigured):
            del conf.task_acks_late
        with pytest.raises(TypeError):
            conf.broker_transport_options["a"] = 1  # type: ignore[index]

    def test_the_givers_dict_is_not_ours(self) -> None:
        options = {"a": 1}
        conf = Settings.build({"broker_transport_options": options})
        options["a"] = 2
        assert conf.broker_transport_options == {"a": 1}

    def test_secrets_are_masked(self) -> None:
        conf = Settings.build(
            {
                "broker_url": "redis://u:secret@h/0?password=secret&x=1",
                "result_backend": "redis://:secret@h;redis://u@h",
                "broker_transport_options": {"sentinel_kwargs": {"password": "secret"}, "urls": ["amqp://a:secret@b"]},
            }
        )
        for text in (repr(conf), conf.humanize(), str(conf.table(with_defaults=True))):
            assert "secret" not in text
        assert conf.humanize().splitlines()[0] == "broker_url: 'redis://u:**@h/0?password=**&x=1'"
        assert "secret" in conf.humanize(censored=False)
        assert len(conf.table(with_defaults=True)) == len(SETTINGS)

    def test_masks_hide_no_more_than_needed(self) -> None:
        assert mask_url("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db" and mask_url("disabled") == "disabled"
        assert masked("task_default_routing_key", "k") == "k" and masked("api_token", "k") == "********"

    def test_a_problem_does_not_tell_a_secret(self) -> None:
        assert "pw" not in problems(result_serializer="redis://u:pw@h")


def test_nothing_of_ours_reads_the_environment_when_imported() -> None:
    from celeriac.core import settings

    assert settings.__file__
    with open(settings.__file__) as file:
        names = {node.attr for node in ast.walk(ast.parse(file.read())) if isinstance(node, ast.Attribute)}
    assert "environ" not in names and "getenv" not in names


def test_a_broker_url_for_reading_that_is_none_says_nothing() -> None:
    assert Settings.build({"broker_read_url": None, "broker_write_url": None}).broker_url == Settings.build({}).broker_url
    with pytest.raises(ImproperlyConfigured, match="broker_read_url must be a URL, not 5"):
        Settings.build({"broker_read_url": 5})


@pytest.mark.parametrize("url", ["redis://localhost", "amqp://localhost", "postgresql://localhost/db"])
def test_tls_that_would_not_be_used_is_an_error(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match="rediss://"):
        Settings.build({"broker_url": url, "broker_use_ssl": True})


@pytest.mark.parametrize("url", ["rediss://localhost", "amqps://localhost", "postgresql://localhost/db?sslmode=verify-full"])
def test_tls_that_the_url_asks_for_may_be_asked_for_twice(url: str) -> None:
    assert Settings.build({"broker_url": url, "broker_use_ssl": {"ssl_cert_reqs": "required"}}).broker_url == url
