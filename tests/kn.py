"""The subcommands of `kn` and their options, from knative/client's docs/cmd (1.23)."""

from __future__ import annotations

KN: dict[str, str] = {
    "broker describe": (
        "--allow-missing-template-keys -h --help -n --namespace -o --output "
        "--show-managed-fields --template"
    ),
    "broker list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output --show-managed-fields --template"
    ),
    "revision delete": (
        "-h --help -n --namespace --no-wait --prune --prune-all --wait --wait-timeout --wait-window"
    ),
    "revision describe": (
        "--allow-missing-template-keys -h --help -n --namespace -o --output "
        "--show-managed-fields --template -v --verbose"
    ),
    "revision list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output -s --service --show-managed-fields --template"
    ),
    "route list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output --show-managed-fields --template"
    ),
    "service apply": (
        "-a --annotation --annotation-revision --annotation-service --arg --cluster-local "
        "--cmd --concurrency-limit --containers -e --env --env-file --env-from "
        "--env-value-from -f --filename --force -h --help --image -l --label --label-revision "
        "--label-service --limit --lock-to-digest --mount -n --namespace --no-cluster-local "
        "--no-lock-to-digest --no-wait --node-affinity --node-selector -p --port "
        "--probe-liveness --probe-liveness-opts --probe-readiness --probe-readiness-opts "
        "--profile --pull-policy --pull-secret --request --revision-name --scale "
        "--scale-activation --scale-init --scale-max --scale-metric --scale-min "
        "--scale-target --scale-utilization --scale-window --security-context "
        "--service-account --timeout --toleration --user --volume --wait --wait-timeout "
        "--wait-window"
    ),
    "service delete": (
        "--all -h --help -n --namespace --no-wait --target --wait --wait-timeout --wait-window"
    ),
    "service describe": (
        "--allow-missing-template-keys -h --help -n --namespace -o --output "
        "--show-managed-fields --target --template -v --verbose"
    ),
    "service export": (
        "--allow-missing-template-keys -h --help --mode -n --namespace -o --output "
        "--show-managed-fields --template --with-revisions"
    ),
    "service list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output --show-managed-fields --target --template"
    ),
    "service update": (
        "-a --annotation --annotation-revision --annotation-service --arg --cluster-local "
        "--cmd --concurrency-limit --containers -e --env --env-file --env-from "
        "--env-value-from -h --help --image -l --label --label-revision --label-service "
        "--limit --lock-to-digest --mount -n --namespace --no-cluster-local "
        "--no-lock-to-digest --no-wait --node-affinity --node-selector -p --port "
        "--probe-liveness --probe-liveness-opts --probe-readiness --probe-readiness-opts "
        "--profile --pull-policy --pull-secret --request --revision-name --scale "
        "--scale-activation --scale-init --scale-max --scale-metric --scale-min "
        "--scale-target --scale-utilization --scale-window --security-context "
        "--service-account --tag --target --timeout --toleration --traffic --untag --user "
        "--volume --wait --wait-timeout --wait-window"
    ),
    "service wait": "-h --help -n --namespace --wait-timeout --wait-window",
    "source binding list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output --show-managed-fields --template"
    ),
    "source list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output --show-managed-fields --template -t --type"
    ),
    "source ping describe": (
        "--allow-missing-template-keys -h --help -n --namespace -o --output "
        "--show-managed-fields --template -v --verbose"
    ),
    "source ping update": "--ce-override -d --data -e --encoding -h --help -n --namespace --schedule -s --sink",
    "trigger describe": (
        "--allow-missing-template-keys -h --help -n --namespace -o --output "
        "--show-managed-fields --template -v --verbose"
    ),
    "trigger list": (
        "-A --all-namespaces --allow-missing-template-keys -h --help -n --namespace "
        "--no-headers -o --output --show-managed-fields --template"
    ),
}
