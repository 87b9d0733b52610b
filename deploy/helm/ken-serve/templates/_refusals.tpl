{{/* What cannot work together, and what the schema cannot say. Each message: what was found, what was expected. */}}
{{- define "ken-serve.refusals" -}}
{{- $v := .Values -}}
{{- include "ken-serve.refuse.scaling" . -}}
{{- include "ken-serve.refuse.upgrade" . -}}
{{- include "ken-serve.refuse.sizes" . -}}
{{- include "ken-serve.refuse.base" . -}}
{{- include "ken-serve.refuse.routes" . -}}
{{- include "ken-serve.refuse.network" . -}}
{{- if and (eq $v.gcsRedis.mode "external") (not $v.gcsRedis.address) -}}
{{- fail "gcsRedis.mode is external, and gcsRedis.address is empty; expected host:port of a Redis" -}}
{{- end -}}
{{- if and $v.store.urlFromSecret (not $v.store.bundled) -}}
{{- fail (cat
    "store.urlFromSecret is for the bundled store: the URL of another store is always the Secret's key"
    "redis-url; leave store.urlFromSecret out") -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.scaling" -}}
{{- $v := .Values -}}
{{- $fewest := $v.autoscaling.enabled | ternary $v.autoscaling.min $v.replicas | int -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.min) (int $v.autoscaling.max)) -}}
{{- fail (printf (cat
    "autoscaling.min is %d, and autoscaling.max is %d; expected a max of at least min")
    (int $v.autoscaling.min) (int $v.autoscaling.max)) -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.spareWorkers) 0) -}}
{{- fail (printf (cat
    "spareWorkers is %d with autoscaling, which adds workers when they are needed; leave spareWorkers"
    "out, or set autoscaling.enabled to false")
    (int $v.spareWorkers)) -}}
{{- end -}}
{{- $surge := int (include "ken-serve.maxSurgePercent" .) -}}
{{- if and (not $v.autoscaling.enabled) (eq (int $v.spareWorkers) 0) (gt $surge 0) -}}
{{- fail (printf (cat
    "rollingUpdate.maxSurgePercent is %d without autoscaling and without spareWorkers: new replicas would"
    "wait for a worker for ever; expected 0, or spareWorkers of at least 1")
    $surge) -}}
{{- end -}}
{{- with $v.podDisruptionBudget.workers -}}
{{- if and .enabled (ge (int .minAvailable) $fewest) -}}
{{- fail (printf (cat
    "podDisruptionBudget.workers.minAvailable is %d, with as few as %d replicas: no node with a worker"
    "could be drained; expected less than the fewest replicas, or podDisruptionBudget.workers.enabled:"
    "false")
    (int .minAvailable) $fewest) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.upgrade" -}}
{{- $v := .Values -}}
{{- if eq $v.upgrade.type "NewClusterWithIncrementalUpgrade" -}}
{{- if not $v.autoscaling.enabled -}}
{{- fail (cat
    "upgrade.type is NewClusterWithIncrementalUpgrade, for which KubeRay needs autoscaling; set"
    "autoscaling.enabled to true, or upgrade.type to NewCluster") -}}
{{- end -}}
{{- if not $v.upgrade.gatewayClassName -}}
{{- fail (cat
    "upgrade.type is NewClusterWithIncrementalUpgrade, and upgrade.gatewayClassName is empty; expected"
    "the name of a GatewayClass") -}}
{{- end -}}
{{- if or $v.ingress.enabled $v.gateway.enabled -}}
{{- fail (printf (cat
    "%s.enabled is true beside upgrade.type NewClusterWithIncrementalUpgrade: KubeRay then makes its own"
    "Gateway and HTTPRoute, and no service that both clusters share; set %s.enabled to false")
    ($v.ingress.enabled | ternary "ingress" "gateway") ($v.ingress.enabled | ternary "ingress" "gateway")) -}}
{{- end -}}
{{- if or (ne $v.serveService.type "ClusterIP") $v.serveService.annotations -}}
{{- fail (cat
    "serveService is set beside upgrade.type NewClusterWithIncrementalUpgrade, with which KubeRay ignores"
    "it; leave serveService out, and configure the GatewayClass") -}}
{{- end -}}
{{- if gt (int $v.upgrade.stepSizePercent) (int $v.upgrade.maxSurgePercent) -}}
{{- fail (printf (cat
    "upgrade.stepSizePercent is %d, and upgrade.maxSurgePercent %d; expected steps no larger than the"
    "surge")
    (int $v.upgrade.stepSizePercent) (int $v.upgrade.maxSurgePercent)) -}}
{{- end -}}
{{- else if $v.upgrade.gatewayClassName -}}
{{- fail (printf (cat
    "upgrade.gatewayClassName is %q, and upgrade.type is %s, which uses no Gateway; set upgrade.type to"
    "NewClusterWithIncrementalUpgrade, or leave upgrade.gatewayClassName out")
    $v.upgrade.gatewayClassName $v.upgrade.type) -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.sizes" -}}
{{- $v := .Values -}}
{{- $disk := get $v.settings "disk_bytes" | default 0 | int64 -}}
{{- if ge $disk (int64 (include "ken-serve.bytes" $v.workers.dataVolume)) -}}
{{- fail (printf (cat
    "settings.disk_bytes is %d, and workers.dataVolume is %s; expected a larger volume, which also holds"
    "compiled kernels")
    $disk $v.workers.dataVolume) -}}
{{- end -}}
{{- $memory := int64 (include "ken-serve.bytes" $v.workers.resources.limits.memory) -}}
{{- $budgets := get $v.settings "host_bytes" | default 0 | int64 -}}
{{- if eq $v.device "cpu" -}}
{{- range list "packed_bytes" "materialised_bytes" -}}
{{- $budgets = add $budgets (get $v.settings . | default 0 | int64) -}}
{{- end -}}
{{- end -}}
{{- if ge (mul 4 $budgets) (mul 3 $memory) -}}
{{- fail (printf (cat
    "the budgets in settings (host_bytes, and on a CPU packed_bytes and materialised_bytes) are %d bytes,"
    "and workers.resources.limits.memory is %s; expected budgets below three quarters of it: the base and"
    "the server need the rest")
    $budgets $v.workers.resources.limits.memory) -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.base" -}}
{{- $v := .Values -}}
{{- if eq $v.base.source "image" -}}
{{- if $v.base.download.enabled -}}
{{- fail (cat
    "base.download.enabled is true, and base.source is image; expected base.source: claim, into which the"
    "Job downloads") -}}
{{- end -}}
{{- else -}}
{{- if and (not $v.base.claim.create) (not $v.base.claim.name) -}}
{{- fail (cat
    "base.claim.create is false, and base.claim.name is empty; expected the name of a claim, or"
    "base.source: image") -}}
{{- end -}}
{{- if and $v.base.download.enabled (not $v.base.download.repository) -}}
{{- fail (cat
    "base.download.enabled is true, and base.download.repository is empty; expected a repository of the"
    "hub, such as answerdotai/ModernBERT-base") -}}
{{- end -}}
{{- if and $v.base.download.enabled (not $v.base.download.revision) -}}
{{- fail (cat
    "base.download.enabled is true, and base.download.revision is empty; expected a commit or a tag:"
    "deltas fit one base only, which must not change") -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.routes" -}}
{{- $v := .Values -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- fail "ingress.enabled is true, and ingress.hosts is empty; expected at least one host name" -}}
{{- end -}}
{{- if $v.gateway.enabled -}}
{{- if and $v.gateway.listener.enabled $v.gateway.parentRefs -}}
{{- fail (cat
    "gateway.parentRefs and gateway.listener are both set; expected Gateways that exist, or one of the"
    "chart's own") -}}
{{- end -}}
{{- with $v.gateway.listener -}}
{{- if and .enabled (not (and .className .certificateRefs)) -}}
{{- fail (cat
    "gateway.listener.enabled is true; expected gateway.listener.className, and at least one Secret with"
    "a certificate in gateway.listener.certificateRefs") -}}
{{- end -}}
{{- end -}}
{{- if not (or $v.gateway.listener.enabled $v.gateway.parentRefs) -}}
{{- fail "gateway.enabled is true without a Gateway; expected gateway.parentRefs, or gateway.listener.enabled: true" -}}
{{- end -}}
{{- else if $v.gateway.listener.enabled -}}
{{- fail "gateway.listener.enabled is true, and gateway.enabled is false; set both" -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.network" -}}
{{- $v := .Values -}}
{{- if $v.networkPolicy.enabled -}}
{{- $external := or (not $v.store.bundled) (eq $v.gcsRedis.mode "external") -}}
{{- if and $external (not $v.networkPolicy.externalRedis.to) -}}
{{- fail (cat
    "a Redis is not the chart's own, and networkPolicy.externalRedis.to is empty: no pod could reach it;"
    "expected its addresses, for example [{ipBlock: {cidr: 10.0.0.0/24}}]") -}}
{{- end -}}
{{- range concat $v.head.env $v.workers.env -}}
{{- $sends := and (hasPrefix "OTEL_EXPORTER_OTLP_" .name) (hasSuffix "ENDPOINT" .name) -}}
{{- if and $sends (not $v.networkPolicy.otlp.to) -}}
{{- fail (printf (cat
    "%s is set, and networkPolicy.otlp.to is empty: no pod could reach the collector; expected its"
    "addresses, for example [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name:"
    "observability}}}]")
    .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Bytes of a quantity with Mi, Gi or Ti, which the schema asks for where this is used. */}}
{{- define "ken-serve.bytes" -}}
{{- $unit := dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get $unit (regexFind "[MGT]i$" .)) -}}
{{- end -}}
