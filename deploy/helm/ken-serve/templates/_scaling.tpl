{{- define "ken-serve.maxSurgePercent" -}}
{{- $given := .Values.rollingUpdate.maxSurgePercent -}}
{{- if kindIs "invalid" $given -}}
{{- or .Values.autoscaling.enabled (gt (int .Values.spareWorkers) 0) | ternary 50 0 -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* How many replicas there are without autoscaling. */}}
{{- define "ken-serve.fixedReplicas" -}}
{{- .Values.replicas | default 2 | int -}}
{{- end -}}

{{/* The fewest and the most workers: for all replicas, and for those that an update starts before it stops others. */}}
{{- define "ken-serve.minWorkers" -}}
{{- if .Values.autoscaling.enabled -}}
{{- int .Values.autoscaling.min -}}
{{- else -}}
{{- add (int (include "ken-serve.fixedReplicas" .)) (int .Values.spareWorkers) -}}
{{- end -}}
{{- end -}}

{{- define "ken-serve.maxWorkers" -}}
{{- $needed := int (include "ken-serve.minWorkers" .) -}}
{{- if .Values.autoscaling.enabled -}}
{{- $max := int .Values.autoscaling.max -}}
{{- $surge := div (add 99 (mul $max (int (include "ken-serve.maxSurgePercent" .)))) 100 -}}
{{- $needed = add $max $surge | int -}}
{{- end -}}
{{- $given := .Values.workers.maxWorkers -}}
{{- if kindIs "invalid" $given -}}
{{- $needed -}}
{{- else if lt (int $given) $needed -}}
{{- fail (printf (cat
    "workers.maxWorkers is %d, but replicas and a rolling update need up to %d workers; expected at least"
    "that, or null")
    (int $given) $needed) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* Seconds during which a replica or a worker that ends still answers: load balancers need 15 to stop using it. */}}
{{- define "ken-serve.drainSeconds" -}}
{{- add 15 (int .Values.requestTimeoutSeconds) -}}
{{- end -}}
