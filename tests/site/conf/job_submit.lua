-- Rules of a site for jobs that ask for them by --extra. All other jobs are left alone.
function slurm_job_submit(job, partitions, uid)
  if job.extra == "refuse" then
    slurm.log_user("this site wants a project: give --account")
    return slurm.ERROR
  end
  if job.extra == "change" then
    job.partition = "spare"
    job.comment = "the site's own"
    job.time_limit = 30
    slurm.log_user("your job was moved to partition spare, for 30 minutes")
  end
  return slurm.SUCCESS
end

function slurm_job_modify(job, record, partitions, uid)
  return slurm.SUCCESS
end

return slurm.SUCCESS
