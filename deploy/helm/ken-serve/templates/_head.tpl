{{- define "ken-serve.headPod" -}}
{{- $group := .Values.head -}}
metadata:
  {{- include "ken-serve.podMetadata" (merge (dict "component" "ray" "root" .) $group) | nindent 2 }}
spec:
  {{- include "ken-serve.podSecurity" (dict "user" 10001 "group" 10001) | nindent 2 }}
  {{- with include "ken-serve.pullSecrets" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "ken-serve.placement" $group | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $group.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: ray-head
      image: {{ include "ken-serve.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: serve
          containerPort: 8000
      {{- include "ken-serve.variables" (dict "root" . "group" "head") | nindent 6 }}
      # Ray's own health, not the application's: the operator submits the application when the head is ready
      startupProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 3
        timeoutSeconds: 3
        failureThreshold: 60
      readinessProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 3
        failureThreshold: 6
      livenessProbe:
        {{- include "ken-serve.rayHealth" . | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 12
      resources:
        {{- toYaml $group.resources | nindent 8 }}
      {{- include "ken-serve.containerSecurity" . | nindent 6 }}
      volumeMounts:
        {{- include "ken-serve.ownMounts" . | nindent 8 }}
        {{- if .Values.autoscaling.enabled }}
        - {name: ray-logs, mountPath: /tmp/ray}
        {{- end }}
  volumes:
    {{- include "ken-serve.ownVolumes" (dict "tmp" $group.tmpVolume "data" "1Gi") | nindent 4 }}
    {{- if .Values.autoscaling.enabled }}
    - name: ray-logs # KubeRay's name for it: Ray's head shows what the autoscaler writes there
      emptyDir: {sizeLimit: {{ $group.logVolume }}}
    - name: autoscaler-tmp
      emptyDir: {sizeLimit: 256Mi}
    # mounted into the autoscaler's container only: it changes the number of workers through the cluster's API
    - name: autoscaler-token
      projected:
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3607}
          - configMap:
              name: kube-root-ca.crt
              items: [{key: ca.crt, path: ca.crt}]
          - downwardAPI:
              items:
                - path: namespace
                  fieldRef: {fieldPath: metadata.namespace}
    {{- end }}
{{- end -}}

{{/* The container that KubeRay adds beside the head. It takes the head's image; no `image` here, so that one that
kustomize sets in the head's container counts for both. */}}
{{- define "ken-serve.autoscaler" -}}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ int .Values.autoscaling.idleTimeoutSeconds }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  resources:
    {{- toYaml .Values.autoscaling.resources | nindent 4 }}
  env:
    - {name: HOME, value: /tmp}
  {{- include "ken-serve.containerSecurity" . | nindent 2 }}
  volumeMounts:
    - {name: autoscaler-tmp, mountPath: /tmp}
    - {name: ray-logs, mountPath: /tmp/ray}
    - {name: autoscaler-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end -}}
