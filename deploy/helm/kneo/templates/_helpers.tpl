{{- define "kneo.name" -}}
{{- if contains "kneo" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-kneo" (.Release.Name | trunc 40 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "kneo.labels" -}}
app.kubernetes.io/name: kneo
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kneo.podSpec" -}}
serviceAccountName: {{ include "kneo.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kneo.container" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "kneo.env" -}}
- {name: KNEO_SERV_DATABASE_URL_FILE, value: /run/kneo/database-url}
- {name: KNEO_SERV_TRUST_ROOT, value: {{ .Values.repository.trustRoot | quote }}}
{{- with .Values.publicUrl }}
- {name: KNEO_SERV_PUBLIC_URL, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "kneo.mounts" -}}
- {name: secrets, mountPath: /run/kneo, readOnly: true}
- {name: state, mountPath: /var/lib/kneo}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "kneo.serviceKey" -}}
- {name: KNEO_SERV_SERVICE_KEY_FILE, value: /run/kneo/service-key}
{{- end }}

{{/* Each process gets the keys of the Secret that it needs: a program that a worker starts reads the files of the worker. */}}
{{- define "kneo.volumes" -}}
- name: secrets
  secret:
    secretName: {{ .root.Values.secrets.name }}
    defaultMode: 0440
    items:
      {{- range .secrets }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
- name: state
  emptyDir: {sizeLimit: {{ .root.Values.controller.mirrorSize }}}
- name: tmp
  emptyDir: {sizeLimit: 256Mi}
{{- end }}

{{- define "kneo.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "kneo.labels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .component }}
{{- end }}
