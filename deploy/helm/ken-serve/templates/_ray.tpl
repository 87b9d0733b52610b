{{/* The variables of Ray's containers: Ray's own, HAProxy's and the store's. */}}
{{- define "ken-serve.ownVariables" -}}
{{- range .Files.Get "files/ray_variables.yaml" | fromYamlArray }}
{{- $value := .value }}
{{- if eq .name "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S" }}
{{- $value = add 5 (int $.Values.requestTimeoutSeconds) | toString }}
{{- else if eq .name "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S" }}
{{- $text := $.Values.settings.generation_timeout_seconds | default 600 | float64 | ceil | int }}
{{- $value = add 120 (max 600 (add 5 (max (int $.Values.requestTimeoutSeconds) $text))) | toString }}
{{- end }}
- {name: {{ .name }}, value: {{ $value | quote }}}
{{- end }}
- {name: KEN_DATA_DIR, value: /var/lib/ken}
- {name: NUMBA_CACHE_DIR, value: /var/lib/ken/numba}
{{- /* settings that HAProxy reads, too */}}
{{- range $setting := list "namespace" "placement" "generation_timeout_seconds" "max_connections" "max_connections_per_source" }}
{{- if hasKey $.Values.settings $setting }}
{{- $value := get $.Values.settings $setting | toJson | trimAll "\"" }}
- {name: KEN_{{ upper $setting }}, value: {{ quote $value }}}
{{- end }}
{{- end }}
{{ if and .Values.store.bundled (not .Values.store.urlFromSecret) -}}
{{ include "ken-serve.secretVariable" (list "STORE_PASSWORD" "redis-password" .) }}
- {name: KEN_REDIS_URL, value: "redis://:$(STORE_PASSWORD)@{{ include "ken-serve.name" (list "redis" .) }}:6379/0"}
{{- else -}}
{{ include "ken-serve.secretVariable" (list "KEN_REDIS_URL" "redis-url" .) }}
{{- end }}
{{ include "ken-serve.secretVariable" (list "KEN_ADMIN_TOKEN" "admin-token" .) }}
{{- end -}}

{{/* All variables of a container. Takes a dict: root, group (head or workers). */}}
{{- define "ken-serve.variables" -}}
{{- $own := include "ken-serve.ownVariables" .root | trim -}}
{{- $taken := list -}}
{{- range fromYamlArray $own }}{{- $taken = append $taken .name }}{{- end -}}
{{- /* what KubeRay sets */}}
{{- $taken = concat $taken (list "RAY_ADDRESS" "RAY_PORT" "RAY_IP" "FQ_RAY_IP" "RAY_CLUSTER_NAME") -}}
{{- $taken = concat $taken (list "RAY_CLUSTER_NAMESPACE" "RAY_REDIS_ADDRESS" "REDIS_PASSWORD" "REDIS_USERNAME") -}}
{{- $taken = concat $taken (list "RAY_external_storage_namespace" "RAY_AUTH_MODE" "RAY_AUTH_TOKEN") -}}
{{- $taken = concat $taken (list "RAY_enable_autoscaler_v2" "KUBERAY_GEN_RAY_START_CMD") -}}
env:
  {{- $own | nindent 2 }}
  {{- range $variable := get .root.Values .group | dig "env" list }}
  {{- if has $variable.name $taken }}
  {{- fail (printf (cat
      "%s.env sets %s, which the chart or KubeRay sets, or which stands there twice; expected other names, each once"
      "(settings of the server go into settings)")
      $.group $variable.name) }}
  {{- end }}
  {{- $taken = append $taken $variable.name }}
  {{- /* the server reads names of any case */}}
  {{- $name := upper $variable.name }}
  {{- if and (hasPrefix "KEN_" $name) (not (has $name (list "KEN_SECRETS_DIR"))) }}
  {{- fail (printf (cat
      "%s.env sets %s; settings of the server are not taken from there, since the head reads them once for all"
      "replicas: expected settings.%s")
      $.group $variable.name (trimPrefix "KEN_" $name | lower)) }}
  {{- end }}
  - {{ toYaml $variable | nindent 4 | trim }}
  {{- end }}
{{- end -}}

{{/* Ray's own health, not the application's: the operator submits the application when the head is ready. */}}
{{- define "ken-serve.rayHealth" -}}
httpGet: {path: /api/healthz, port: 52365}
{{- end -}}

{{/* Takes a dict: tmp and data, the sizes of these volumes. */}}
{{- define "ken-serve.ownVolumes" -}}
- name: home
  emptyDir: {sizeLimit: 1Gi}
- name: tmp
  emptyDir: {sizeLimit: {{ .tmp }}}
- name: data
  emptyDir: {sizeLimit: {{ .data }}}
{{- end -}}

{{- define "ken-serve.ownMounts" -}}
- {name: home, mountPath: /home/ken}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /var/lib/ken}
{{- end -}}
