{{/* Labels of everything; called with (dict "root" $ "component" "operator"). */}}
{{- define "longhand.labels" -}}
{{ include "longhand.selector" . }}
app.kubernetes.io/part-of: longhand
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "longhand.selector" -}}
app.kubernetes.io/name: longhand
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* An image's full name; called with (dict "root" $ "image" .Values.operator.image). */}}
{{- define "longhand.image" -}}
{{- $registry := .image.registry | default .root.Values.image.registry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ .image.repository }}:{{ .image.tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{- define "longhand.pullPolicy" -}}
{{ .image.pullPolicy | default .root.Values.image.pullPolicy }}
{{- end }}

{{/* The absolute name of a Service; called with (dict "root" $ "component" "session"). */}}
{{- define "longhand.host" -}}
{{ .root.Release.Name }}-{{ .component }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}.
{{- end }}

{{- define "longhand.sessionScheme" -}}
{{ ternary "https" "http" .Values.session.tls.enabled }}
{{- end }}

{{/* The Secret with the certificate of the session service. */}}
{{- define "longhand.sessionSecret" -}}
{{ .Values.session.tls.existingSecret | default (printf "%s-session-tls" .Release.Name) }}
{{- end }}

{{- define "longhand.etcdEndpoints" -}}
{{- if .Values.etcd.endpoints -}}
{{ join "," .Values.etcd.endpoints }}
{{- else -}}
{{ ternary "https" "http" .Values.etcd.tls.enabled }}://{{ include "longhand.host" (dict "root" . "component" "etcd") }}:2379
{{- end -}}
{{- end }}

{{/* Whether etcd is the chart's and asks for certificates. */}}
{{- define "longhand.etcdTLS" -}}
{{- if and (not .Values.etcd.endpoints) .Values.etcd.tls.enabled }}true{{ end -}}
{{- end }}

{{/* The certificate of a user of the chart's etcd; called with (dict "root" $ "user" "operator"). */}}
{{- define "longhand.etcdFlags" -}}
- --etcd-endpoints={{ include "longhand.etcdEndpoints" .root }}
{{- if include "longhand.etcdTLS" .root }}
- --etcd-ca-file=/var/run/longhand/etcd/ca.crt
- --etcd-cert-file=/var/run/longhand/etcd/{{ .user }}.crt
- --etcd-key-file=/var/run/longhand/etcd/{{ .user }}.key
{{- end }}
{{- end }}

{{- define "longhand.etcdVolume" -}}
- name: etcd
  secret:
    secretName: {{ .root.Release.Name }}-etcd-tls
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}, {key: {{ .user }}.crt, path: {{ .user }}.crt}, {key: {{ .user }}.key, path: {{ .user }}.key}]
{{- end }}

{{/* What every pod of the release has in common: where it runs, and as whom. */}}
{{- define "longhand.pod" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "longhand.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* CEL: whether a request is by another; called with (dict "root" $ "component" "session"). */}}
{{- define "longhand.notBy" -}}
request.userInfo.username != 'system:serviceaccount:{{ .root.Release.Namespace }}:{{ .root.Release.Name }}-{{ .component }}'
{{- end }}

{{- /* Where spans go, in the words of OpenTelemetry's SDKs. */}}
{{- define "longhand.tracing" }}
{{- with .Values.tracing }}
{{- if .endpoint -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .sampleRatio | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Which namespaces a policy is for: another installation may have the others. */}}
{{- define "longhand.watched" }}
{{- with .Values.watchNamespaces }}
    namespaceSelector:
      matchExpressions:
        - {key: kubernetes.io/metadata.name, operator: In, values: {{ toJson . }}}
{{- end }}
{{- end }}

{{- /* The rights of a component where the objects of sessions are: everywhere, or in each of watchNamespaces. */}}
{{- define "longhand.watchRole" }}
{{- $root := .root }}
{{- $account := dict "kind" "ServiceAccount" "name" (printf "%s-%s" $root.Release.Name .component) "namespace" $root.Release.Namespace }}
{{- $suffix := ternary "-watched" "" (not (empty $root.Values.watchNamespaces)) }}
{{- $kind := ternary "Role" "ClusterRole" (not (empty $root.Values.watchNamespaces)) }}
{{- range $index, $namespace := $root.Values.watchNamespaces | default (list "") }}
{{- if $index }}
---
{{- end }}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $root.Release.Name }}-{{ $.component }}{{ $suffix }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "longhand.labels" $ | nindent 4 }}
rules:
{{- $.rules }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ $root.Release.Name }}-{{ $.component }}{{ $suffix }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "longhand.labels" $ | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ $kind }}, name: {{ $root.Release.Name }}-{{ $.component }}{{ $suffix }}}
subjects:
  - {{ toJson $account }}
{{- end }}
{{- end }}
