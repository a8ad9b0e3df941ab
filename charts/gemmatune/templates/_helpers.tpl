{{/* Name of the operator's objects: gemmatune-operator, or RELEASE-gemmatune-operator for a release of another name. */}}
{{- define "gemmatune.name" -}}
{{- $release := .Release.Name | trunc 36 | trimSuffix "-" -}}
{{- if contains "gemmatune" $release }}{{ $release }}{{ else }}{{ $release }}-gemmatune{{ end }}-operator
{{- end -}}

{{/* The labels by which the Deployment finds its pods; they never change. */}}
{{- define "gemmatune.selector" -}}
app.kubernetes.io/name: gemmatune
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* The labels of every object. managed-by is Helm's here: `gemmatune` stands on what the operator makes. */}}
{{- define "gemmatune.labels" -}}
{{ include "gemmatune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The operator's ServiceAccount. */}}
{{- define "gemmatune.account" -}}
{{ .Values.serviceAccount.name | default (include "gemmatune.name" .) }}
{{- end -}}

{{/* The defaults that are given, as YAML; nothing where there are none. */}}
{{- define "gemmatune.defaults" -}}
{{- $given := dict -}}
{{- range $name, $value := .Values.defaults }}{{ if $value }}{{ $_ := set $given $name $value }}{{ end }}{{ end -}}
{{- with $given }}{{ toYaml . }}{{ end }}
{{- end -}}

{{/* The operator's image. */}}
{{- define "gemmatune.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- end -}}
