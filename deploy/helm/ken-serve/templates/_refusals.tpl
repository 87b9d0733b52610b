{{/* What cannot work together, and what the schema cannot say. Each message: what was found, what was expected. */}}
{{- define "ken-serve.refusals" -}}
{{- $v := .Values -}}
{{- include "ken-serve.refuse.scaling" . -}}
{{- include "ken-serve.refuse.upgrade" . -}}
{{- include "ken-serve.refuse.sizes" . -}}
{{- include "ken-serve.refuse.redis" . -}}
{{- include "ken-serve.refuse.requests" . -}}
{{- include "ken-serve.refuse.volumes" . -}}
{{- include "ken-serve.refuse.names" . -}}
{{- include "ken-serve.refuse.base" . -}}
{{- include "ken-serve.refuse.routes" . -}}
{{- include "ken-serve.refuse.network" . -}}
{{- if and (eq $v.gcsRedis.mode "external") (not $v.gcsRedis.address) -}}
{{- fail "gcsRedis.mode is external, and gcsRedis.address is empty; expected host:port of a Redis" -}}
{{- end -}}
{{- with $v.monitoring.prometheusRule -}}
{{- if and .enabled (not .job) (not $v.monitoring.podMonitor.enabled) -}}
{{- fail (cat
    "monitoring.prometheusRule.enabled is true without monitoring.podMonitor, and its job is empty: the alert"
    "KenServerDown would always be on; expected the name of the job that scrapes the workers in"
    "monitoring.prometheusRule.job") -}}
{{- end -}}
{{- end -}}
{{- if and $v.store.urlFromSecret (not $v.store.bundled) -}}
{{- fail (cat
    "store.urlFromSecret is for the bundled store: the URL of another store is always the Secret's key"
    "redis-url; leave store.urlFromSecret out") -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.scaling" -}}
{{- $v := .Values -}}
{{- $fewest := $v.autoscaling.enabled | ternary $v.autoscaling.min (include "ken-serve.fixedReplicas" .) | int -}}
{{- if and $v.autoscaling.enabled $v.replicas -}}
{{- fail (printf (cat
    "replicas is %d with autoscaling, which keeps between autoscaling.min and autoscaling.max replicas; leave"
    "replicas out, or set autoscaling.enabled to false")
    (int $v.replicas)) -}}
{{- end -}}
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
{{- $most := get $v.settings "max_requests" | default 1024 | float64 -}}
{{- if and $v.autoscaling.enabled (gt (float64 $v.autoscaling.targetOngoingRequests) $most) -}}
{{- fail (printf (cat
    "autoscaling.targetOngoingRequests is %v, and a replica refuses more than %v requests (settings.max_requests): no"
    "replica would be added; expected far less")
    $v.autoscaling.targetOngoingRequests $most) -}}
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
{{- $disk := include "ken-serve.budget" (list "disk_bytes" .) | int64 -}}
{{- if ge $disk (int64 (include "ken-serve.bytes" $v.workers.dataVolume)) -}}
{{- fail (printf (cat
    "settings.disk_bytes is %d, and workers.dataVolume is %s; expected a larger volume, which also holds"
    "compiled kernels")
    $disk $v.workers.dataVolume) -}}
{{- end -}}
{{- $memory := int64 (include "ken-serve.bytes" $v.workers.resources.limits.memory) -}}
{{- $needed := add 1610612736 (include "ken-serve.budget" (list "host_bytes" .) | int64) -}}
{{- if eq $v.device "cpu" -}}
{{- range list "packed_bytes" "materialised_bytes" -}}
{{- $needed = add $needed (div (mul 14 (include "ken-serve.budget" (list . $) | int64)) 10) -}}
{{- end -}}
{{- end -}}
{{- if gt $needed $memory -}}
{{- fail (printf (cat
    "workers.resources.limits.memory is %s, and the settings need %d bytes beside the base: 1.5 GiB, host_bytes, and"
    "on a CPU 1.4 times packed_bytes and materialised_bytes; expected a higher limit, or smaller budgets in settings")
    $v.workers.resources.limits.memory $needed) -}}
{{- end -}}
{{- end -}}

{{/* A setting in bytes. A setting that is not there has the server's default. Takes a list: its name, the root. */}}
{{- define "ken-serve.budget" -}}
{{- $name := index . 0 -}}{{- $settings := (index . 1).Values.settings -}}
{{- $defaults := dict "disk_bytes" 20971520000 "host_bytes" 2097152000 "packed_bytes" 2097152000 -}}
{{- if hasKey $settings $name -}}
{{- get $settings $name | int64 -}}
{{- else -}}
{{- get $defaults $name | default 0 | int64 -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.requests" -}}
{{- $v := .Values -}}
{{- $blocks := dict "head" $v.head "workers" $v.workers "store" $v.store "gcsRedis" $v.gcsRedis -}}
{{- $_ := set $blocks "autoscaling" $v.autoscaling -}}
{{- $_ := set $blocks "base.download" $v.base.download -}}
{{- range $block, $values := $blocks -}}
{{- $limits := $values.resources.limits -}}
{{- range $name, $asked := $values.resources.requests -}}
{{- if hasKey $limits $name -}}
{{- $limit := get $limits $name -}}
{{- if gt (include "ken-serve.amount" $asked | float64) (include "ken-serve.amount" $limit | float64) -}}
{{- fail (printf (cat
    "%s.resources.requests.%s is %v, and %s.resources.limits.%s is %v; expected a request of at most the limit")
    $block $name $asked $block $name $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes as a number. */}}
{{- define "ken-serve.amount" -}}
{{- $text := toString . -}}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "" 1.0 -}}
{{- $_ := merge $units (dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0) -}}
{{- $unit := regexFind "[a-zA-Z]*$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) -}}
{{- end -}}

{{- define "ken-serve.refuse.redis" -}}
{{- $bundled := dict -}}
{{- if .Values.store.bundled -}}{{- $_ := set $bundled "store" .Values.store -}}{{- end -}}
{{- if eq .Values.gcsRedis.mode "bundled" -}}{{- $_ := set $bundled "gcsRedis" .Values.gcsRedis -}}{{- end -}}
{{- range $name, $redis := $bundled -}}
{{- $most := int64 (include "ken-serve.bytes" $redis.maxMemory) -}}
{{- $limit := int64 (include "ken-serve.bytes" $redis.resources.limits.memory) -}}
{{- if gt (mul 4 $most) (mul 3 $limit) -}}
{{- fail (printf (cat
    "%s.maxMemory is %s, and %s.resources.limits.memory is %s; expected at most three quarters of the limit:"
    "Redis needs room to write its file anew")
    $name $redis.maxMemory $name $redis.resources.limits.memory) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.names" -}}
{{- $seen := dict -}}
{{- range $component, $name := .Values.names -}}
{{- if and $name (hasKey $seen $name) -}}
{{- fail (printf "names.%s and names.%s are both %s; expected different names" (get $seen $name) $component $name) -}}
{{- end -}}
{{- $_ := set $seen $name $component -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.refuse.volumes" -}}
{{- $paths := list "/home/ken" "/tmp" "/var/lib/ken" -}}
{{- range $paths -}}
{{- $base := printf "%s/" $.Values.base.path -}}
{{- if or (hasPrefix (printf "%s/" .) $base) (hasPrefix $base .) -}}
{{- fail (printf (cat
    "base.path is %s, and the pods have a volume of their own at %s; expected a path apart from it, such as"
    "/models/base")
    $.Values.base.path .) -}}
{{- end -}}
{{- end -}}
{{- if eq .Values.base.source "claim" -}}{{- $paths = append $paths .Values.base.path -}}{{- end -}}
{{- $own := list "home" "tmp" "data" -}}
{{- if eq .Values.base.source "claim" -}}{{- $own = append $own "base" -}}{{- end -}}
{{- $all := $own -}}
{{- range .Values.workers.extraVolumes -}}
{{- if has .name $all -}}
{{- fail (printf (cat
    "workers.extraVolumes has the name %s, which is taken; expected a name of its own beside %s")
    .name (join ", " $all)) -}}
{{- end -}}
{{- $all = append $all .name -}}
{{- end -}}
{{- $keys := get .Values.settings "keys_file" | default "" -}}
{{- $mounted := not $keys -}}
{{- range .Values.workers.extraVolumeMounts -}}
{{- if not (has .name $all) -}}
{{- fail (printf (cat
    "workers.extraVolumeMounts mounts the volume %s, which does not exist; expected one of %s, or another in"
    "workers.extraVolumes")
    .name (join ", " $all)) -}}
{{- end -}}
{{- $path := trimSuffix "/" .mountPath -}}
{{- if has $path $paths -}}
{{- fail (printf "workers.extraVolumeMounts mounts %s at %s, where there is a volume already; expected another path"
    .name .mountPath) -}}
{{- end -}}
{{- $paths = append $paths $path -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) (printf "%s/" $keys) -}}{{- $mounted = true -}}{{- end -}}
{{- end -}}
{{- if not $mounted -}}
{{- fail (printf (cat
    "settings.keys_file is %s, and no mount in workers.extraVolumeMounts holds it; expected the file's Secret in"
    "workers.extraVolumes and workers.extraVolumeMounts")
    $keys) -}}
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
{{- with $v.base.claim.name -}}
{{- fail (printf "base.claim.name is %s, and base.source is image; expected base.source: claim, or no name" .) -}}
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
{{- $readable := eq (toJson (uniq $v.base.claim.accessModes)) (toJson (list "ReadOnlyMany")) -}}
{{- if and $v.base.download.enabled $v.base.claim.create $readable -}}
{{- fail (cat
    "base.download.enabled is true, and base.claim.accessModes is ReadOnlyMany: the Job could not write; expected"
    "ReadWriteMany, or ReadWriteOnce for a single node") -}}
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
{{- $addresses := false -}}
{{- range $v.networkPolicy.clients.from -}}
{{- if hasKey . "ipBlock" -}}{{- $addresses = true -}}{{- end -}}
{{- end -}}
{{- if and (ne $v.serveService.type "ClusterIP") (not $addresses) -}}
{{- fail (printf (cat
    "serveService.type is %s, and networkPolicy.clients.from has no ipBlock: nobody from outside the cluster could"
    "come in; expected the addresses of clients, or of the nodes if the balancer passes connections on through them,"
    "for example {ipBlock: {cidr: 10.0.0.0/8}}")
    $v.serveService.type) -}}
{{- end -}}
{{- with $v.base.download -}}
{{- if and .enabled .endpoint -}}
{{- $port := regexFind ":[0-9]+" (regexReplaceAll "^https?://" .endpoint "") | trimPrefix ":" -}}
{{- $port = $port | default (hasPrefix "http://" .endpoint | ternary 80 443) | int -}}
{{- $open := list -}}
{{- range $v.networkPolicy.hub.ports -}}{{- $open = append $open (int .) -}}{{- end -}}
{{- if not (has $port $open) -}}
{{- fail (printf (cat
    "base.download.endpoint is %s, and networkPolicy.hub.ports lacks %d: the Job could not reach it; expected the"
    "port there")
    .endpoint $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
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

{{/* Bytes of a quantity with Mi, Gi or Ti, or Redis' mb and gb, which the schema asks for where this is used. */}}
{{- define "ken-serve.bytes" -}}
{{- $unit := dict "Mi" 1048576 "mb" 1048576 "Gi" 1073741824 "gb" 1073741824 "Ti" 1099511627776 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get $unit (regexFind "[a-zA-Z]+$" .)) -}}
{{- end -}}
