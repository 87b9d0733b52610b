{{/* Pods of the release. */}}
{{- define "ken-serve.allPods" -}}
{{- if .Values.networkPolicy.wholeNamespace -}}
{}
{{- else -}}
matchExpressions:
  - key: app
    operator: In
    values:
      - {{ include "ken-serve.name" (list "ray" .) }}
      - {{ include "ken-serve.name" (list "redis" .) }}
      - {{ include "ken-serve.name" (list "gcs-redis" .) }}
      - {{ include "ken-serve.name" (list "base-download" .) }}
{{- end -}}
{{- end -}}

{{/* A list of ports. */}}
{{- define "ken-serve.ports" -}}
ports:
{{- range . }}
  - port: {{ int . }}
{{- end }}
{{- end -}}

{{/* A rule for egress. Takes the map with `to` and `ports`. */}}
{{- define "ken-serve.egress" -}}
- to:
    {{- toYaml .to | nindent 4 }}
  {{- include "ken-serve.ports" .ports | nindent 2 }}
{{- end -}}

{{/* Lets Ray's nodes and nothing else reach a Redis. Takes a list: the component, the root. */}}
{{- define "ken-serve.redisPolicy" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  {{- $named := eq $component "redis" | ternary "store" $component -}}
  {{- include "ken-serve.metadata" (dict "component" $named "root" $root) | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      app: {{ include "ken-serve.name" (list $component $root) }}
  policyTypes: [Ingress]
  ingress:
    - from:
        - podSelector:
            matchLabels:
              app: {{ include "ken-serve.name" (list "ray" $root) }}
      ports:
        - port: 6379
{{- end -}}
