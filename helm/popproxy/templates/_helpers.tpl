{{- define "popproxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "popproxy.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $both := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $both .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "popproxy.serviceAccountName" -}}
{{- default (include "popproxy.fullname" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* What a pod of this release is chosen by. It can never change: a Deployment's selector is fixed. */}}
{{- define "popproxy.selector" -}}
app.kubernetes.io/name: {{ include "popproxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: proxy
{{- end -}}

{{- define "popproxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* Of everything but pods. */}}
{{- define "popproxy.metadata" -}}
name: {{ include "popproxy.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "popproxy.selector" . | nindent 2 }}
  {{- include "popproxy.labels" . | nindent 2 }}
{{- end -}}

{{- define "popproxy.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The user and group that the Dockerfile makes. */}}
{{- define "popproxy.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10110
runAsGroup: 10110
fsGroup: 10110
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "popproxy.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities: {drop: [ALL]}
{{- end -}}
