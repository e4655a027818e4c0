#!/bin/sh
# Make the bucket and a user who may use this bucket only. Safe to run again.
# MC_HOST_minio holds the server's address with the root user's keys.
set -eu

mc mb --ignore-existing "minio/$BUCKET"

policy=/tmp/policy.json
cat >"$policy" <<JSON
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
      "Resource": ["arn:aws:s3:::$BUCKET"]
    },
    {
      "Effect": "Allow",
      "Action": [
        "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
        "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"
      ],
      "Resource": ["arn:aws:s3:::$BUCKET/*"]
    }
  ]
}
JSON
mc admin policy create minio recon-worker "$policy"
mc admin user add minio "$ACCESS_KEY" "$SECRET_KEY"
if ! answer=$(mc admin policy attach minio recon-worker --user "$ACCESS_KEY" 2>&1); then
    case $answer in
        *"already in effect"*) ;;
        *) echo "$answer" >&2; exit 1 ;;
    esac
fi
echo "Bucket $BUCKET and user $ACCESS_KEY are ready."
