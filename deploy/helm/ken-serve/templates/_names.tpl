{{- define "ken-serve.fullname" -}}
{{- $both := printf "%s-%s" .Release.Name .Chart.Name -}}
{{- $derived := contains .Chart.Name .Release.Name | ternary .Release.Name $both -}}
{{- $name := .Values.fullnameOverride | default $derived -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf (cat
    "the names of the release's objects would begin with %q, which has %d characters; expected 40 at"
    "most: set fullnameOverride")
    $name (len $name)) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf (cat
    "the names of the release's objects would begin with %q; expected lower-case letters, digits and"
    "hyphens, a letter first: set fullnameOverride")
    $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* The name of a component's object, and its label `app`. Takes a list: the component, and the root. */}}
{{- define "ken-serve.name" -}}
{{- $component := index . 0 -}}{{- $root := index . 1 -}}
{{- $full := include "ken-serve.fullname" $root -}}
{{- $derived := eq $component "ray-service" | ternary $full (printf "%s-%s" $full $component) -}}
{{- get $root.Values.names $component | default $derived -}}
{{- end -}}

{{/* Metadata of an object. Takes a dict: component, root, and optionally labels, annotations, a name. */}}
{{- define "ken-serve.metadata" -}}
name: {{ .name | default (include "ken-serve.name" (list .component .root)) }}
labels:
  app.kubernetes.io/part-of: ken-serve
  app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
  {{- with merge (dict) (.labels | default dict) .root.Values.commonLabels }}
  {{- $own := list "app.kubernetes.io/part-of" "app.kubernetes.io/instance" }}
  {{- range concat $own (list "app.kubernetes.io/managed-by" "helm.sh/chart") }}
  {{- if or (hasKey ($.labels | default dict) .) (hasKey $.root.Values.commonLabels .) }}
  {{- fail (printf "found the label %s among labels in the values; the chart sets it: expected other labels" .) }}
  {{- end }}
  {{- end }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Metadata of a pod template. Takes a dict: component, root, and optionally podLabels and podAnnotations. */}}
{{- define "ken-serve.podMetadata" -}}
labels:
  app: {{ include "ken-serve.name" (list .component .root) }}
  {{- with merge (dict) (.podLabels | default dict) .root.Values.commonLabels }}
  {{- if hasKey . "app" }}
  {{- fail (cat
      "found the label `app` among podLabels or commonLabels, by which the chart's selectors find pods;"
      "expected other labels") }}
  {{- end }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.podAnnotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image. Takes the map with repository, tag and digest. */}}
{{- define "ken-serve.imageName" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- define "ken-serve.image" -}}
{{- $tag := .Values.image.tag | default .Values.device -}}
{{- include "ken-serve.imageName" (merge (dict "tag" $tag) .Values.image) -}}
{{- end -}}
